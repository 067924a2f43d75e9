"""How a training reads the text otherwise, or looks at how it is read: a patch of the host's cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange

from ...backbones.unet import attention_modules, structure_of
from ...watch import AttentionLayer, Watch

#: in the transformer options: the prompt for the values. It lies there and not in the patch, so that a block that runs again for
#: its gradient knows it as one of its inputs
VALUES = "dreammatcher_values"


def text_options(base: Any, values: torch.Tensor | None, watch: Watch | None) -> dict[str, Any]:
    """Transformer options of one call: a prompt of its own for the ``values`` [B, T, D], and a ``watch`` on every layer."""
    if values is None and watch is None:
        return {}
    layers = attention_modules(base, frozenset(structure_of(base).cross_attention)) if watch else {}

    def read(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
        if watch is not None:
            place = (*extra["block"], extra["block_index"])
            own = layers[place]
            watch(AttentionLayer(place, _heads(own.to_q(n), own.heads), context, lambda text: _heads(own.to_k(text), own.heads)))
        return n, context, extra[VALUES].to(value) if VALUES in extra else value

    return {"patches": {"attn2_patch": [read]}, **({} if values is None else {VALUES: values})}


def _heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    return rearrange(projected, "b n (h d) -> b h n d", h=heads)
