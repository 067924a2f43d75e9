"""Toybox-Z: a NextDiT in Z-Image's layout on Toybox's world, in the host's own class. Newer hosts only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.supported_models_base
import torch

from .host import CLIP_PREFIX, TEXT_WIDTH, UNET_PREFIX, VAE_PREFIX, ToyboxLatents, patcher_of, read, text_and_vae

#: transformer blocks of a model that is made anew; a file's own number is read from its weights
LAYERS = 8

CONFIG: dict[str, Any] = {
    "patch_size": 1, "in_channels": 4, "dim": 256, "n_refiner_layers": 1, "n_heads": 8, "n_kv_heads": 8, "multiple_of": 32,
    "ffn_dim_multiplier": 2.0, "qk_norm": True, "cap_feat_dim": TEXT_WIDTH, "axes_dims": [8, 12, 12], "axes_lens": [1, 64, 64],
    "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}


def host_class() -> type:
    """The host's model class for Z-Image. Raises RuntimeError on a host from before it."""
    kind = getattr(comfy.model_base, "Lumina2", None)
    if kind is None or not hasattr(comfy.model_base, "ZImagePixelSpace"):
        raise RuntimeError("model: Toybox's transformer needs a ComfyUI that knows Z-Image (2026); update ComfyUI, or choose the "
                           "UNet")
    return kind


class ToyboxZFamily(comfy.supported_models_base.BASE):
    """A single-stream transformer that predicts velocities: text tokens first, rotary positions, 16x16 picture tokens."""

    side = 128  # pixels of its pictures
    unet_config = CONFIG
    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"multiplier": 1.0, "shift": 1.0}
    latent_format = ToyboxLatents
    memory_usage_factor = 1.4
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def get_model(self, state_dict, prefix="", device=None):
        return host_class()(self, device=device)


def transformer_model(layers: int = LAYERS, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
    """The host's BaseModel around an uninitialised Toybox-Z of ``layers`` blocks. Raises RuntimeError on older hosts."""
    host_class()
    family = ToyboxZFamily({**CONFIG, "n_layers": layers})
    family.set_inference_dtype(dtype, None)
    return family.get_model({}, "", device=device)


def layers_of(weights: dict[str, torch.Tensor]) -> int:
    """Number of blocks in a transformer's state dict."""
    return len({name.split(".")[1] for name in weights if name.startswith("layers.")})


def load(path: Path, others: Path, tokenizer_dir: Path, embedding_directory=None, dtype: torch.dtype = torch.float32,
         disable_dynamic: bool = False):
    """MODEL, in ``dtype``, from the transformer's file at ``path``, CLIP and VAE from the Toybox file ``others``.

    Raises RuntimeError on older hosts, FileNotFoundError or ValueError, naming the file, when one is missing or no such model.
    """
    host_class()
    weights = read(path, (UNET_PREFIX,))[UNET_PREFIX]
    base = transformer_model(layers_of(weights), dtype)
    base.diffusion_model.load_state_dict(weights)
    patcher = patcher_of(base, disable_dynamic)
    patcher.cached_patcher_init = (load, (path, others, tokenizer_dir, embedding_directory, dtype), 0)
    parts = read(others, (CLIP_PREFIX, VAE_PREFIX))
    return patcher, *text_and_vae(others, parts, tokenizer_dir, embedding_directory, disable_dynamic)
