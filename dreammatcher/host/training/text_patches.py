"""How a training reads the text otherwise, or looks at how it is read: patches of the host's cross-attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange

from ...training.denoising import AttentionLayer, Watch
from ...unet import attention_modules, structure_of


def text_patches(base: torch.nn.Module, values: torch.Tensor | None, watch: Watch | None) -> list[Callable]:
    """Patches of one call: a prompt of its own for the ``values`` [B, T, D], and a ``watch`` on every layer."""
    if values is None and watch is None:
        return []
    layers = attention_modules(base, frozenset(structure_of(base).cross_attention)) if watch else {}

    def read(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
        if watch is not None:
            own = layers[(*extra["block"], extra["block_index"])]
            watch(AttentionLayer(_heads(own.to_q(n), own.heads), context, lambda text: _heads(own.to_k(text), own.heads)))
        return n, context, value if values is None else values.to(value)

    return [read]


def _heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    return rearrange(projected, "b n (h d) -> b h n d", h=heads)
