"""Appearance matching (DreamMatcher, Sec. 4.3): the target keeps its queries and keys, its values become the reference's.

Injection happens on the *inputs* of the value projection. The projection has no bias and acts on each position alone, so
warping and blending commute with it: W(to_v(n)) = to_v(W(n)).
"""

from __future__ import annotations

import torch
from einops import rearrange

from .correspondence import take


def trusted(mask: torch.Tensor, confidence: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """M' = M . U, scaled by ``strength`` 0..1: [B, 1, H, W]."""
    return mask * confidence * strength


def blend(value: torch.Tensor, warped: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """V' = M' . W(V_X; F) + (1 - M') . V_Y (Eq. 7).

    ``value`` and ``warped`` [..., B, N, C], ``weight`` [B, 1, H, W] with H * W = N. Where the weight is 0 the value is
    untouched, bit for bit.
    """
    tokens = rearrange(weight, "b 1 h w -> b (h w) 1").to(value.dtype)
    return torch.where(tokens > 0, torch.lerp(value, warped, tokens), value)


def sharpened(query: torch.Tensor, weight: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Inputs [K * B, N, C] of the query projection, longer by ``sharpness`` x ``weight`` [B, 1, H, W], of K batches.

    The projection has no bias: the cell's attention falls off faster, and what it looks at is more alike. Not in the paper.
    """
    tokens = rearrange(weight, "b 1 h w -> b (h w) 1").to(query.dtype)
    longer = query.unflatten(0, (-1, weight.shape[0])) * (1 + sharpness * tokens)
    return longer.flatten(0, 1)


def match_appearance(
    value: torch.Tensor, reference_value: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Values [K * B, N, C] with the matched reference values [1|B, M, C] blended in.

    ``indices`` [B, N] from :attr:`Match.indices`; ``weight`` [B, 1, H, W] from :func:`trusted`. K batches, such as the rows
    of the guidance pair, may share both.
    """
    warped = take(reference_value.to(value.dtype), indices)
    return blend(value.unflatten(0, (-1, indices.shape[0])), warped, weight).flatten(0, 1)
