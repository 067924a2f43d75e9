"""The two layouts that transformers hand their queries, keys and values in: [B, heads, L, d], and [B, L, heads * d]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange

from ...backbones.base import Tokens
from .patch_points import Attended


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


def with_output(look: Callable[[Attended], torch.Tensor], output: torch.Tensor, inputs: tuple, heads: int, picture: Tokens,
                others: tuple[slice, ...], mask: torch.Tensor | None) -> torch.Tensor:
    """``output`` of attention to ``inputs`` with what ``look`` makes of the picture's part; the same where it changes nothing."""
    depth = inputs[0].shape[-1] // (1 if inputs[0].ndim == 4 else heads)
    query, key, value = (by_head(each, depth) for each in inputs)
    part = by_head(output, depth)[:, :, picture]
    made = look(Attended(part, query[:, :, picture], key, value, others, _added(mask, picture, query)))
    return output if made is part else with_tokens(output, picture, rearrange(made, "b h n d -> b n (h d)"))


def _added(mask: torch.Tensor | None, picture: Tokens, query: torch.Tensor) -> torch.Tensor | None:
    """The host's mask, of two to four dimensions, true or false or added, as rows of the picture that are added to scores."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    mask = mask[:, None] if mask.ndim == 3 else mask
    return mask[..., picture, :] if mask.shape[-2] == query.shape[2] else mask
