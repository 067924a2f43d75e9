"""Builds the Toybox model from the host's own classes, so that the host's CLIP, VAE, UNet and samplers are what runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch

from .int8 import dequantise

log = logging.getLogger(__name__)

TEXT_WIDTH = 96
TEXT_LAYERS = 3
UNET_PREFIX, CLIP_PREFIX, VAE_PREFIX = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."


class ToyboxLatents(comfy.latent_formats.LatentFormat):
    """The Toybox autoencoder already makes latents of unit variance."""

    scale_factor = 1.0
    #: the linear map to red, green and blue (-1..1) that errs least on training pictures; the host's previews are made with it
    latent_rgb_factors = ((-0.488, -0.250, 0.022), (0.035, 0.007, -0.021), (0.056, 0.020, -0.029), (0.0, -0.271, -0.557))
    latent_rgb_factors_bias = (0.125, 0.172, 0.187)


class ToyboxFamily(comfy.supported_models_base.BASE):
    """An SD1.5-shaped UNet of 11 M parameters: 3 scales, one block each, attention on all of them."""

    side = 128  # pixels of its pictures
    pace = 20.0  # so much larger are the steps that it learns in
    unet_config = {
        "image_size": 16, "in_channels": 4, "out_channels": 4, "model_channels": 64,
        "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 3],
        "transformer_depth": [1, 1, 1], "transformer_depth_output": [1] * 6, "transformer_depth_middle": 1,
        "use_spatial_transformer": True, "use_linear_in_transformer": False, "context_dim": TEXT_WIDTH,
        "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
    }
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
    latent_format = ToyboxLatents


def unet_model(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
    """The host's BaseModel around an uninitialised Toybox UNet."""
    family = ToyboxFamily(ToyboxFamily.unet_config)
    family.set_inference_dtype(dtype, None)
    return family.get_model({}, "", device=device)


def text_config(vocabulary: int) -> dict:
    return {
        "num_hidden_layers": TEXT_LAYERS, "hidden_size": TEXT_WIDTH, "num_attention_heads": 4,
        "intermediate_size": 4 * TEXT_WIDTH, "hidden_act": "quick_gelu", "vocab_size": vocabulary,
        "max_position_embeddings": 77, "eos_token_id": vocabulary - 1,
    }


def clip_target(tokenizer_dir: Path) -> comfy.supported_models_base.ClipTarget:
    """Tokenizer and text encoder classes for ``comfy.sd.CLIP``; the vocabulary is read from ``tokenizer_dir``."""
    vocabulary = sum(1 for _ in _read_json(tokenizer_dir / "vocab.json"))
    special = {"start": vocabulary - 2, "end": vocabulary - 1, "pad": vocabulary - 1}

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, **host_arguments):
            super().__init__(str(tokenizer_dir), embedding_directory=embedding_directory, embedding_size=TEXT_WIDTH,
                             **host_arguments)

    class TextTower(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, textmodel_json_config=None, **host_arguments):
            super().__init__(device=device, dtype=dtype, special_tokens=special,
                             textmodel_json_config=textmodel_json_config or text_config(vocabulary), **host_arguments)
            known = self.transformer.get_input_embeddings()
            if known.num_embeddings != vocabulary:  # newer hosts take CLIP's vocabulary for granted
                self.transformer.set_input_embeddings(type(known)(
                    vocabulary, TEXT_WIDTH, device=known.weight.device, dtype=known.weight.dtype))

        def forward(self, tokens):
            states, *others = super().forward(tokens)
            return zero_padding(states, [row.index(special["end"]) for row in _numbers(tokens)]), *others

    class TextModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, **host_arguments):
            super().__init__(device=device, dtype=dtype, clip_model=TextTower, **host_arguments)

    class TextTokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, **host_arguments):
            super().__init__(embedding_directory=embedding_directory, tokenizer=Tokenizer, **host_arguments)

    return comfy.supported_models_base.ClipTarget(TextTokenizer, TextModel)


def zero_padding(states: torch.Tensor, ends: list[int] | torch.Tensor) -> torch.Tensor:
    """Sets what follows the end token to zero, so that the UNet has to read words. ``states`` [B, L, D], ``ends`` [B]."""
    places = torch.arange(states.shape[1], device=states.device)
    return states * (places <= torch.as_tensor(ends, device=states.device)[:, None])[..., None]


def _numbers(rows: list) -> list[list[int | None]]:
    """Token numbers, with None for a textual inversion's vectors, whatever form the host gives those."""
    return [[token if isinstance(token, int) else None for token in row] for row in rows]


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def build_clip(tokenizer_dir: Path, embedding_directory=None, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    options = {"disable_dynamic": True} if disable_dynamic else {}  # older hosts do not know it
    with torch.no_grad():
        return comfy.sd.CLIP(clip_target(tokenizer_dir), embedding_directory=embedding_directory, **options)


def read(path: Path, prefixes: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """Prefix -> float32 state dict from a Toybox safetensors file.

    Raises FileNotFoundError or ValueError, naming the file, when it is missing or lacks one of the prefixes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Toybox model {path} is missing; re-install the pack or train it as toybox/README.md says")
    try:
        weights = dequantise(comfy.utils.load_torch_file(str(path), safe_load=True))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    parts = {prefix: {key[len(prefix):]: value for key, value in weights.items() if key.startswith(prefix)}
             for prefix in prefixes}
    for prefix, part in parts.items():
        if not part:
            raise ValueError(f"{path} is not a Toybox model: it has no weights that start with {prefix!r}")
    return parts


def patcher_of(base, disable_dynamic: bool) -> comfy.model_patcher.ModelPatcher:
    """The host's ModelPatcher around a BaseModel, of the kind that the host's own loaders would make."""
    Patcher = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", Patcher)
    return Patcher(base, load_device=comfy.model_management.get_torch_device(),
                   offload_device=comfy.model_management.unet_offload_device())


def load(path: Path, tokenizer_dir: Path, embedding_directory=None, disable_dynamic: bool = False):
    """MODEL, CLIP and VAE from one Toybox safetensors file. ``disable_dynamic`` has newer hosts load all weights at once.

    Raises FileNotFoundError or ValueError, naming the file, when it is missing or is not a Toybox model.
    """
    parts = read(path, (UNET_PREFIX, CLIP_PREFIX, VAE_PREFIX))
    base = unet_model()
    base.diffusion_model.load_state_dict(parts[UNET_PREFIX])
    patcher = patcher_of(base, disable_dynamic)
    # newer hosts make a second copy with this when the first is loaded bit by bit and something needs it whole
    patcher.cached_patcher_init = (load, (path, tokenizer_dir, embedding_directory), 0)
    return patcher, *text_and_vae(path, parts, tokenizer_dir, embedding_directory, disable_dynamic)


def text_and_vae(path: Path, parts: dict[str, dict[str, torch.Tensor]], tokenizer_dir: Path, embedding_directory=None,
                 disable_dynamic: bool = False) -> tuple[comfy.sd.CLIP, comfy.sd.VAE]:
    """CLIP and VAE from the ``parts`` of the file at ``path``. Raises ValueError for weights that the text encoder lacks."""
    clip = build_clip(tokenizer_dir, embedding_directory, disable_dynamic)
    clip.patcher.cached_patcher_init = (_text_patcher, (path, tokenizer_dir, embedding_directory))
    _, unexpected = clip.load_sd(parts[CLIP_PREFIX], full_model=True)
    if unexpected:
        raise ValueError(f"{path}: unknown text encoder weights {unexpected[:3]}")
    return clip, comfy.sd.VAE(sd=parts[VAE_PREFIX])


def _text_patcher(path: Path, tokenizer_dir: Path, embedding_directory=None, disable_dynamic: bool = False):
    parts = read(path, (CLIP_PREFIX, VAE_PREFIX))
    return text_and_vae(path, parts, tokenizer_dir, embedding_directory, disable_dynamic)[0].patcher


def embedding_folders() -> list[str]:
    """Folders in which the host looks for textual inversion files."""
    import folder_paths

    return folder_paths.get_folder_paths("embeddings")
