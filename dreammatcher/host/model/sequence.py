"""Queries, keys and values of a transformer's sequence, with heads, [B, heads, L, d], or without, [B, L, heads * d]."""

from __future__ import annotations

import torch
from einops import rearrange

from ...backbones.base import Tokens


def by_head(whole: torch.Tensor, depth: int) -> torch.Tensor:
    """Queries or keys as [B, heads, L, depth]."""
    return whole if whole.ndim == 4 else rearrange(whole, "b n (h d) -> b h n d", d=depth)


def tokens_of(whole: torch.Tensor, picture: Tokens) -> torch.Tensor:
    """The picture's tokens with all heads, [B, N, C]."""
    part = whole[..., picture, :]
    return rearrange(part, "b h n d -> b n (h d)") if whole.ndim == 4 else part


def with_tokens(whole: torch.Tensor, picture: Tokens, part: torch.Tensor) -> torch.Tensor:
    """A copy of ``whole`` with other tokens [B, N, C] in the picture's place."""
    changed = whole.clone()
    changed[..., picture, :] = rearrange(part, "b n (h d) -> b h n d", h=whole.shape[1]) if whole.ndim == 4 else part
    return changed


def with_parts(inputs: tuple, picture: Tokens, parts: tuple, new: tuple) -> tuple:
    """``inputs`` with what became of the picture's ``parts``."""
    return tuple(whole if part is old else with_tokens(whole, picture, part) for whole, old, part in zip(inputs, parts, new))
