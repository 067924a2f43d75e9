"""The picture's part of what a transformer's attention gave, by heads, for a method that changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange

from ...backbones.base import Tokens
from .patch_points import Attended
from .sequence import by_head, with_tokens


def with_output(look: Callable[[Attended, dict[str, Any]], torch.Tensor], output: torch.Tensor, inputs: tuple, heads: int,
                picture: Tokens, others: tuple[slice, ...], mask: torch.Tensor | None, options: dict[str, Any]) -> torch.Tensor:
    """``output`` of attention to ``inputs`` with what ``look`` makes of the picture's part; the same where it changes nothing."""
    depth = inputs[0].shape[-1] // (1 if inputs[0].ndim == 4 else heads)
    query, key, value = (by_head(each, depth) for each in inputs)
    part = by_head(output, depth)[:, :, picture]
    made = look(Attended(part, query[:, :, picture], key, value, others, _added(mask, picture, query)), options)
    return output if made is part else with_tokens(output, picture, rearrange(made, "b h n d -> b n (h d)"))


def _added(mask: torch.Tensor | None, picture: Tokens, query: torch.Tensor) -> torch.Tensor | None:
    """The host's mask, of two to four dimensions, true or false or added, as rows of the picture that are added to scores."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    mask = mask[:, None] if mask.ndim == 3 else mask
    return mask[..., picture, :] if mask.shape[-2] == query.shape[2] else mask
