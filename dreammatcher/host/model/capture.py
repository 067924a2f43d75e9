"""What is read out of the UNet's attention, and the UNet called by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from ...attention import attention_columns, repeated_columns
from ...backbones.unet import Layer, Structure, attention_modules, halved
from ...subject import Conditioning, Subject
from .arguments import model_arguments


@dataclass(frozen=True, eq=False)
class SubjectMaps:
    """Reads the subject's columns out of cross-attention, beside the attention itself."""

    modules: dict[Layer, Any]
    levels: dict[Layer, int]
    subject: Subject

    @staticmethod
    def of(base: Any, structure: Structure, subject: Subject, latent_size: tuple[int, int]) -> SubjectMaps:
        layers = structure.map_layers(latent_size)
        return SubjectMaps(attention_modules(base, layers), structure.cross_attention, subject)

    def read(self, layer: Layer, query: torch.Tensor, context: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor | None:
        """The map [B, 1, h, w] of one layer, or None when another pack changed its token count."""
        height, width = halved(latent_size, self.levels[layer])
        if query.shape[1] != height * width:
            return None
        module = self.modules[layer]
        columns = repeated_columns(self.subject.columns, self.subject.tokens, context.shape[1])
        maps = attention_columns(module.to_q(query), module.to_k(context), module.heads, columns)
        return rearrange(maps, "b (h w) -> b 1 h w", h=height)


def layer_of(extra: dict) -> Layer:
    return (*extra["block"], extra.get("block_index", 0))


def ode_derivative(
    base: Any, conditioning: Conditioning, x: torch.Tensor, sigma: float, patches: dict | None = None
) -> torch.Tensor:
    """Predicted noise at ``x`` [B, C, H, W]; ``patches`` are the only ones that run."""
    if not math.isfinite(sigma) or sigma <= 0:
        raise ValueError(f"sigma: {sigma} is not above 0")
    options = {"patches": patches or {}, "cond_or_uncond": [0], "sigmas": torch.full((x.shape[0],), sigma, device=x.device)}
    clean = base.apply_model(x, options["sigmas"], **model_arguments(base, conditioning, x), transformer_options=options)
    return (x - clean) / sigma
