"""A patch of the host's cross-attention by which a training has the text read otherwise, or looks at how it is read."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange

from ...backbones.base import Site
from ...watch import AttentionLayer, Watch
from .backbone import network_of, unet_backbone_of
from .patch_points import Points

#: in the transformer options: the prompt for the values. It lies there and not in the patch, so that a block that runs again for
#: its gradient knows it as one of its inputs
VALUES = "dreammatcher_values"


def text_options(base: Any, values: torch.Tensor | None, watch: Watch | None) -> dict[str, Any]:
    """Transformer options of one call: a prompt of its own for the ``values`` [B, T, D], and a ``watch`` on every layer."""
    if values is None and watch is None:
        return {}
    layers = reading_modules(base) if watch else {}

    def read(site: Site, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict[str, Any]) -> tuple:
        if watch is not None:
            attention = layers[site]
            watch(AttentionLayer(site, _heads(attention.to_q(n), attention.heads), context,
                                 lambda text: _heads(attention.to_k(text), attention.heads)))
        return n, context, extra[VALUES].to(value) if VALUES in extra else value

    return {"patches": Points(prompt=read).alone(), **({} if values is None else {VALUES: values})}


def reading_modules(base: Any) -> dict[Site, Any]:
    """The attention modules (to_q, to_k, heads) of all sites that read the prompt."""
    backbone = unet_backbone_of(base)
    return backbone.prompt_attention(network_of(base), backbone.readers)


def prompt_widths(base: Any) -> set[int]:
    """Numbers of a prompt's token, as the sites of a network read it."""
    return {module.to_k.in_features for module in reading_modules(base).values()}


def _heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    return rearrange(projected, "b n (h d) -> b h n d", h=heads)
