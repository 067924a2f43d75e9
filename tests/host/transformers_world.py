"""Small random diffusion transformers in the layouts of real families, through the host's own classes; newer hosts alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from world import picture, prompt, randomised

FLUX = dict(hidden_size=96, num_heads=4, mlp_ratio=2.0, depth=2, depth_single_blocks=3, context_in_dim=96, theta=10000)
LUMINA = dict(in_channels=16, patch_size=2, cap_feat_dim=96, n_layers=5, n_refiner_layers=1, multiple_of=32, qk_norm=True)
MMDIT = dict(in_channels=16, patch_size=2, depth=2, num_blocks=5, input_size=None, adm_in_channels=64, num_patches=144,
             pos_embed_max_size=12, pos_embed_scaling_factor=None, qk_norm="rms", context_size=96,
             context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 96, "out_features": 128}})
#: what tells them apart: (host's entry, its network's configuration, width of the pooled text)
TRANSFORMERS = {
    "Z-Image": ("ZImage", dict(LUMINA, dim=256, n_heads=8, n_kv_heads=8, axes_dims=[8, 12, 12], axes_lens=[1, 64, 64],
                               ffn_dim_multiplier=1.0, rope_theta=256.0, z_image_modulation=True, time_scale=1000.0,
                               pad_tokens_multiple=32), None),
    "Lumina 2": ("Lumina2", dict(LUMINA, dim=96, n_heads=4, n_kv_heads=2, axes_dims=[8, 8, 8], axes_lens=[300, 64, 64],
                                 ffn_dim_multiplier=2.0), None),
    "Flux.1": ("Flux", dict(FLUX, in_channels=16, out_channels=16, patch_size=2, axes_dim=[8, 8, 8], vec_in_dim=32, qkv_bias=True,
                            guidance_embed=True, txt_ids_dims=[]), 32),
    "Flux.1 schnell": ("FluxSchnell", dict(FLUX, in_channels=16, out_channels=16, patch_size=2, axes_dim=[8, 8, 8], vec_in_dim=32,
                                           qkv_bias=True, guidance_embed=False, txt_ids_dims=[]), 32),
    "Flux.2": ("Flux2", dict(FLUX, in_channels=128, out_channels=128, patch_size=1, axes_dim=[8, 8, 4, 4], vec_in_dim=None,
                             qkv_bias=False, guidance_embed=True, txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True,
                             ops_bias=False, default_ref_method="index", ref_index_scale=10.0), None),
    "Chroma": ("Chroma", dict(FLUX, in_channels=64, out_channels=64, patch_size=2, axes_dim=[8, 8, 8], vec_in_dim=None,
                              qkv_bias=True, txt_ids_dims=[], in_dim=64, out_dim=96, hidden_dim=64, n_layers=2), None),
    "Qwen-Image": ("QwenImage", dict(num_layers=5, attention_head_dim=24, num_attention_heads=4, joint_attention_dim=96,
                                     axes_dims_rope=(8, 8, 8), in_channels=64, out_channels=16, patch_size=2), None),
    "Krea 2": ("Krea2", dict(features=96, tdim=32, txtdim=32, heads=4, kvheads=2, multiplier=2, layers=5, patch=2, channels=16,
                             txtlayers=3, txtheads=2, txtkvheads=2), None),
    "Cosmos-Predict2": ("CosmosT2IPredict2", dict(
        max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
        concat_padding_mask=True, model_channels=96, num_blocks=5, num_heads=4, mlp_ratio=2.0, crossattn_emb_channels=96,
        pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30, use_adaln_lora=True,
        adaln_lora_dim=16), None),
    "Wan": ("WAN21_T2V", dict(model_type="t2v", patch_size=(1, 2, 2), text_len=512, in_dim=16, out_dim=16, dim=96, ffn_dim=192,
                              freq_dim=32, text_dim=96, num_heads=4, num_layers=5, qk_norm=True, cross_attn_norm=True), None),
    "SD3.5": ("SD3", MMDIT, 64),
    "SD3.5 Medium": ("SD3", dict(MMDIT, x_block_self_attn_layers=[0, 1, 2, 3]), 64),
    "HiDream": ("HiDream", dict(patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_single_layers=3,
                                attention_head_dim=24, num_attention_heads=4, caption_channels=[96, 32], text_emb_dim=32,
                                num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(8, 8, 8),
                                max_resolution=(64, 64), llama_layers=[0, 1, 2, 1, 0]), 32),
}


def transformer(name: str):
    """The host's ModelPatcher around a random network of a family. Skips the test where the host has none of it."""
    import comfy.supported_models
    from comfy.ldm.modules import attention

    entry, config, _ = TRANSFORMERS[name]
    kind = getattr(comfy.supported_models, entry, None)
    if kind is None or not hasattr(attention, "wrap_attn"):
        pytest.skip(f"this host does not know {name}")
    model = randomised(kind(config))
    if entry == "SD3":  # its places are learned ones: faint, so that a shift of the picture is nearly one of its values
        model.model.diffusion_model.pos_embed.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    return model


def prompt_of(name: str, seed: int, tokens: int = 20) -> list:
    made = prompt(seed, tokens, pooled=TRANSFORMERS[name][2])
    if TRANSFORMERS[name][0] == "HiDream":  # three layers of a second encoder
        made[0][1]["conditioning_llama3"] = torch.randn(1, 3, tokens + 1, 32, generator=torch.Generator().manual_seed(seed))
    return made


def block_of(bench, met: list, query: torch.Tensor, key: torch.Tensor, options: dict):
    """The site whose attention within its sequence runs; None for attention to the prompt and in front of the blocks. ``met``
    holds the sites of one forward, and of the forwards before it."""
    if query.shape[-2] != key.shape[-2]:
        return None
    if bench.backbone.numbers.name == "COUNTED":
        met.append(("block", len(met) % bench.backbone.blocks, 0))
        return met[-1]
    if bench.backbone.numbers.name == "SLOTS":  # a block's second attention is the picture's to itself, of as many tokens fewer
        if met and met[-1][1] > query.shape[1]:
            return None
        met.append((("block", len(met) % bench.backbone.blocks, 0), query.shape[1]))
        return met[-1][0]
    return bench.backbone.site(options.get("block_type"), options["block_index"]) if "block_index" in options else None


def latent_of(model, seed: int, height: int = 12, width: int = 16, batch: int = 1) -> torch.Tensor:
    """A random picture in the model's form: with one frame where its latents have frames."""
    formats = model.model.latent_format
    flat = picture(seed, height, width, batch, formats.latent_channels)
    return flat.unsqueeze(2) if formats.latent_dimensions == 3 else flat


def evaluated(model, positive: list, negative: list, seen: list[tuple[torch.Tensor, float]],
              cfg: float = 1.0) -> list[torch.Tensor]:
    """The clean estimates of one run whose sampler shows the model these latents at these noise levels."""
    import comfy.sample
    import comfy.samplers

    found: list[torch.Tensor] = []

    def look(denoise, x, sigmas, extra_args=None, callback=None, disable=None):
        for shown, sigma in seen:
            found.append(denoise(shown.clone(), torch.full((len(shown),), sigma), **(extra_args or {})).clone())
        return x

    first = seen[0][0]
    with torch.inference_mode():
        comfy.sample.sample_custom(model, torch.zeros_like(first), cfg, comfy.samplers.KSAMPLER(look), torch.tensor([1.0, 0.0]),
                                   positive, negative, torch.zeros_like(first), disable_pbar=True)
    return found


def drawn(model, positive: list, negative: list, height: int = 12, width: int = 16, batch: int = 1, cfg: float = 1.0,
          steps: int = 4, sampler: str = "euler") -> torch.Tensor:
    import comfy.sample

    noise = latent_of(model, 1000, height, width, batch)
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, steps, cfg, sampler, "simple", positive, negative, torch.zeros_like(noise),
                                   seed=0, disable_pbar=True)


SIGMA = 0.4
SIZE = (12, 16)  # of the latent; cells are 6 x 8, of Flux.2 as many as the latent's


def bench_of(pack, name: str) -> SimpleNamespace:
    model = transformer(name)
    module = pack.module("dreammatcher.host.model.backbone")
    backbone, process = module.backbone_of(model.model), module.process_of(model.model.model_sampling)
    return SimpleNamespace(name=name, model=model, backbone=backbone, pack=pack, process=process, positive=prompt_of(name, 1),
                           negative=prompt_of(name, 2), longer=prompt_of(name, 3, 41))


def reference_of(bench, clean: torch.Tensor, noise: torch.Tensor, prompt: list):
    """A reference whose x is known at every noise level, without an inversion."""
    inversion, reference = (bench.pack.module(f"dreammatcher.matching.{name}") for name in ("inversion", "reference"))
    conditioning = bench.pack.module("dreammatcher.host.text.conditioning").from_host(prompt, "positive")[0]
    clean, noise = (x[:, :, 0] if x.ndim == 5 else x for x in (clean, noise))
    trajectory = inversion.Trajectory((SIGMA,), clean, noise, bench.process)
    return reference.Reference(trajectory, clean, conditioning, conditioning, bench.backbone.family)


def applied(bench, reference, mask: dict | None = None, model=None, layers: str = "", **settings):
    """(model, trace) with the foreground carried over from a reference that is all subject."""
    module = bench.pack.module("dreammatcher.matching.settings")
    given = {"reference_mask": torch.ones(1, 1, *SIZE), "carried": True} if mask is None else mask
    settings.setdefault("start", 0.0)
    return bench.pack.module("dreammatcher.host.matching.apply").apply(
        model or bench.model, reference, module.MaskSettings(**given), module.ApplySettings(**settings), layers)


def made(bench, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A clean picture, noise, and the latent of both at SIGMA."""
    clean, noise = (latent_of(bench.model, each, *SIZE) for each in (seed, seed + 100))
    return clean, noise, bench.pack.module("dreammatcher.matching.inversion").Trajectory(
        (SIGMA,), clean, noise, bench.process).at(SIGMA)


def other_reference(bench):
    clean, noise, _ = made(bench, 9)
    return reference_of(bench, clean, noise, bench.positive)


def last_block(model) -> str:
    """The place of the last block's forward among the objects that other packs patch."""
    network = model.model.diffusion_model
    blocks = next(name for name in ("layers", "blocks", "single_blocks", "transformer_blocks", "joint_blocks",
                                     "single_stream_blocks") if hasattr(network, name))
    return f"diffusion_model.{blocks}.{len(getattr(network, blocks)) - 1}.forward"
