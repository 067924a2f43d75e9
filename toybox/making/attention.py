"""Attention for training on a CPU, where torch's fused kernel spends more time on its backward pass than the rest of a block."""

from __future__ import annotations

import torch
from einops import rearrange


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, *_, skip_reshape: bool = False,
              **__) -> torch.Tensor:
    """softmax(Q Kᵀ / sqrt(d)) V with the host's signature; masks are not used in training.

    Takes [B, N, H D] each, or [B, H, N, D] with ``skip_reshape``; gives [B, N, H D].
    """
    layout = "b h n d -> (b h) n d" if skip_reshape else "b n (h d) -> (b h) n d"
    query, key, value = (rearrange(x, layout, h=heads) for x in (query, key, value))
    scores = torch.bmm(query, key.transpose(1, 2)) * query.shape[-1] ** -0.5
    return rearrange(torch.bmm(scores.softmax(-1).to(value.dtype), value), "(b h) n d -> b n (h d)", h=heads)
