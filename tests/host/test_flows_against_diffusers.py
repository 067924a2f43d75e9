"""One step of DreamBooth as a LoRA on transformers: Flux and Qwen-Image against diffusers' models with the loss of its scripts
(train_dreambooth_lora_flux.py, train_dreambooth_lora_qwen_image.py) written out, Z-Image against its network written out.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from test_guidance import in_inference_mode
from torch.func import functional_call
from transformers_world import TRANSFORMERS, transformer
from world import randomised

diffusers = pytest.importorskip("diffusers")

CAPTION, CLASS_CAPTION, BATCH, WEIGHT = "a photo of a sks robot", "a photo of a robot", 2, 0.7
#: of layers and of all numbers together
NEAR = 1e-4


@pytest.fixture(autouse=True)
def _gradients():
    with torch.inference_mode(False), torch.enable_grad():
        yield


def flux_config() -> dict:
    return {**TRANSFORMERS["Flux.1"][1], "mlp_ratio": 4.0}  # as diffusers has it for all


def small(name: str, config: dict | None = None):
    import comfy.supported_models

    model = transformer(name)  # which skips older hosts
    if config is not None:
        model = randomised(getattr(comfy.supported_models, TRANSFORMERS[name][0])(config))
    return in_inference_mode(model)


@pytest.fixture
def step(pack, toybox):
    """One step of our recipe on a model: its loss, its LoRA's factors with their gradients, and what it drew."""
    def made(model):
        data, training, trainer = (pack.module(f"dreammatcher.training.{name}") for name in ("data", "dreambooth", "recipe"))
        settings, layers = pack.module("dreammatcher.training.settings"), pack.module("dreammatcher.training.details").Layers
        with torch.inference_mode():
            denoiser = pack.module("dreammatcher.host.training.model").HostDenoiser(model, toybox[1], (8, 12))
        generator = torch.Generator().manual_seed(5)
        channels = model.model.latent_format.latent_channels
        pictures, prior = (data.LatentSet((data.Prepared(torch.randn(1, channels, 8, 12, generator=generator), None, (text,)),))
                           for text in (CAPTION, CLASS_CAPTION))
        targets = training.transformer_targets(denoiser.unet, layers(feed_forward=True))
        lora = training.lora_of(denoiser.unet, targets, settings.LoraSettings(4), 1e-4, generator)
        for up in lora.up.values():  # zero at first, when A has no gradient
            up.data.normal_(0, 0.02, generator=generator)
        recipe = trainer.SubjectRecipe(denoiser, pictures, settings.ObjectiveSettings(WEIGHT), unet=lora, prior=prior)
        loss = recipe.loss(BATCH, torch.Generator().manual_seed(1))
        loss.backward()
        drawn = torch.Generator().manual_seed(1)
        latents = torch.cat([one.draw(BATCH, drawn).latents for one in (pictures, prior)])
        steps = torch.randint(len(denoiser.alpha_bars), (len(latents),), generator=drawn)
        with torch.inference_mode():
            sigmas = model.get_model_object("model_sampling").sigmas[steps]
        seen = [denoiser.encode([text]) for text in (CAPTION, CLASS_CAPTION)]
        return SimpleNamespace(
            loss=float(loss), factors=lora.factors(), latents=latents, noise=torch.randn(latents.shape, generator=drawn),
            sigmas=torch.tensor(sigmas.tolist()),
            text=torch.cat([one.cross_attention.repeat(BATCH, 1, 1) for one in seen]).clone(),
            pooled=torch.cat([one.pooled.repeat(BATCH, 1) for one in seen]).clone(), base=denoiser.unet)
    return made


def loss_of_the_scripts(predict, drawn) -> torch.Tensor:
    """Both halves in one call, MSE with a weighting of 1 (``--weighting_scheme none``), the class's times its weight."""
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = drawn.sigmas.view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * drawn.latents + sigmas * drawn.noise
    weighting = compute_loss_weighting_for_sd3(weighting_scheme="none", sigmas=sigmas)
    halves = zip(predict(noisy).chunk(2), (drawn.noise - drawn.latents).chunk(2), weighting.chunk(2))
    subject, prior = ((weight.float() * (said.float() - target.float()) ** 2).flatten(1).mean(1).mean()
                      for said, target, weight in halves)
    return subject + WEIGHT * prior


def check(ours, loss: torch.Tensor, factors: dict) -> None:
    loss.backward()
    assert ours.loss == pytest.approx(float(loss), rel=NEAR)
    pairs = {(name, part): (own.grad, other.grad) for name in factors
             for part, own, other in zip("AB", ours.factors[name], factors[name])}
    unread = [name for (name, _), (_, other) in pairs.items() if other is None]
    known = [(own, other) for own, other in pairs.values() if other is not None]
    whole, others = (torch.cat([pair[side].flatten() for pair in known]) for side in (0, 1))
    assert (whole - others).norm() <= NEAR * others.norm() and len(known) > len(unread)
    for (name, _), (own, other) in pairs.items():
        assert own is None or not own.any() if other is None else (own - other).norm() <= 10 * NEAR * other.norm(), name


def leaves(ours) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {name: tuple(one.detach().clone().requires_grad_() for one in pair) for name, pair in ours.factors.items()}


def changed(base: dict[str, torch.Tensor], factors: dict) -> dict[str, torch.Tensor]:
    return {name: value.clone() + (factors[name][1] @ factors[name][0] if name in factors else 0) for name, value in base.items()}


def test_a_step_on_flux_has_the_loss_and_gradients_of_diffusers(step):
    import comfy.utils
    from diffusers import FluxPipeline, FluxTransformer2DModel

    config = flux_config()
    ours = step(small("Flux.1", config))
    factors = leaves(ours)
    weights, theirs = changed(ours.base, factors), {}
    for name, place in comfy.utils.flux_to_diffusers(config).items():
        own, cut, change = (*((place,) if isinstance(place, str) else place), None, None)[:3]
        if own in weights:
            value = weights[own] if cut is None else weights[own].narrow(*cut)
            theirs[name] = value if change is None else change(value)
    network = FluxTransformer2DModel(
        num_layers=2, num_single_layers=3, attention_head_dim=24, num_attention_heads=4, joint_attention_dim=96,
        pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(8, 8, 8))
    assert set(network.state_dict()) <= set(theirs), "every weight is ours"

    def predict(noisy: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = noisy.shape
        said = functional_call(network, {name: theirs[name] for name in network.state_dict()}, (), dict(
            hidden_states=FluxPipeline._pack_latents(noisy, batch, channels, height, width), timestep=ours.sigmas,
            guidance=torch.ones(batch), pooled_projections=ours.pooled[:, :32], encoder_hidden_states=ours.text,
            txt_ids=torch.zeros(ours.text.shape[1], 3), return_dict=False,
            img_ids=FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32)))[0]
        return FluxPipeline._unpack_latents(said, height * 8, width * 8, 8)

    check(ours, loss_of_the_scripts(predict, ours), factors)


def test_a_step_on_qwen_image_has_the_loss_and_gradients_of_diffusers(step):
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    ours = step(small("Qwen-Image"))
    factors = leaves(ours)
    weights = changed(ours.base, factors)
    network = QwenImageTransformer2DModel(num_layers=5, attention_head_dim=24, num_attention_heads=4, joint_attention_dim=96,
                                          axes_dims_rope=(8, 8, 8))
    assert set(network.state_dict()) <= set(weights), "every weight is ours"

    def predict(noisy: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = noisy.shape
        said = functional_call(network, {name: weights[name] for name in network.state_dict()}, (), dict(
            hidden_states=QwenImagePipeline._pack_latents(noisy, batch, channels, height, width), timestep=ours.sigmas,
            encoder_hidden_states=ours.text, img_shapes=[(1, height // 2, width // 2)] * batch,
            txt_seq_lens=[ours.text.shape[1]] * batch, return_dict=False))[0]
        return QwenImagePipeline._unpack_latents(said, height * 8, width * 8, 8)[:, :, 0]

    check(ours, loss_of_the_scripts(predict, ours), factors)


def test_a_step_on_z_image_has_the_loss_and_gradients_of_its_network_written_out(step):
    ours = step(small("Z-Image"))
    factors = leaves(ours)
    weights = changed(ours.base, factors)
    check(ours, loss_of_the_scripts(lambda noisy: z_image(weights, noisy, ours.sigmas, ours.text), ours), factors)


def z_image(weights: dict[str, torch.Tensor], noisy: torch.Tensor, sigmas: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The flow that Z-Image's single-stream transformer says (Z-Image team 2025), which counts time from noise to picture."""
    heads, axes, theta, multiple, patch = 8, (8, 12, 12), 256.0, 32, 2

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def rms(name: str, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weights[f"{name}.weight"]

    def padded(x: torch.Tensor, token: str) -> torch.Tensor:
        more = -x.shape[1] % multiple
        return torch.cat([x, weights[token].expand(len(x), more, -1)], 1)

    def turned(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        angles = torch.cat([places[:, [axis]].double() * theta ** -(torch.arange(0, width, 2).double() / width)
                            for axis, width in enumerate(axes)], 1)
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).float()

    def attended(name: str, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=heads) for part in linear(f"{name}.qkv", x).chunk(3, -1))
        q, k = (turned(rms(f"{name}.{norm}", part), places) for norm, part in (("q_norm", q), ("k_norm", k)))
        maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return linear(f"{name}.out", rearrange(maps @ v, "b h n d -> b n (h d)"))

    def fed(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(f"{name}.w2", F.silu(linear(f"{name}.w1", x)) * linear(f"{name}.w3", x))

    def block(name: str, x: torch.Tensor, places: torch.Tensor, time: torch.Tensor | None) -> torch.Tensor:
        scales = [torch.zeros(()), torch.full((), torch.inf)] * 2 if time is None else \
            linear(f"{name}.adaLN_modulation.0", time)[:, None].chunk(4, -1)
        x = x + scales[1].tanh() * rms(f"{name}.attention_norm2", attended(
            f"{name}.attention", (1 + scales[0]) * rms(f"{name}.attention_norm1", x), places))
        return x + scales[3].tanh() * rms(f"{name}.ffn_norm2", fed(
            f"{name}.feed_forward", (1 + scales[2]) * rms(f"{name}.ffn_norm1", x)))

    frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    angles = (1 - sigmas)[:, None] * 1000 * frequencies
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    said = padded(linear("cap_embedder.1", rms("cap_embedder.0", text)), "cap_pad_token")
    count, height, width = said.shape[1], noisy.shape[2] // patch, noisy.shape[3] // patch
    picture = linear("x_embedder", rearrange(noisy, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch))
    rows, columns = (grid.flatten() for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    cells = torch.stack([torch.full_like(rows, count + 1), rows, columns], 1)
    before = torch.stack([torch.arange(count) + 1, *torch.zeros(2, count).long()], 1)
    picture = padded(picture, "x_pad_token")
    cells = F.pad(cells, (0, 0, 0, picture.shape[1] - len(cells)))
    said, picture = block("context_refiner.0", said, before, None), block("noise_refiner.0", picture, cells, time)
    sequence, places = torch.cat([said, picture], 1), torch.cat([before, cells])
    for number in range(5):
        sequence = block(f"layers.{number}", sequence, places, time)
    scale = linear("final_layer.adaLN_modulation.1", F.silu(time))[:, None]
    ends = linear("final_layer.linear", (1 + scale) * F.layer_norm(sequence, sequence.shape[-1:], eps=1e-6))
    return -rearrange(ends[:, count:count + height * width], "b (h w) (p q c) -> b c (h p) (w q)", h=height, p=patch, q=patch)
