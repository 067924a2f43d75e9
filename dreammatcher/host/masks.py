"""From the host's MASK ([B, H, W] in 0..1) to masks of one channel."""

from __future__ import annotations

import torch


def mask_grid(name: str, mask: torch.Tensor | None) -> torch.Tensor | None:
    """[B, 1, H, W] in 0..1, or None for no mask. Raises ValueError, naming the input, when it is no MASK."""
    if mask is None:
        return None
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"{name}: a MASK is [batch, height, width]; this one is {tuple(mask.shape)}")
    if not torch.isfinite(mask).all():
        raise ValueError(f"{name}: it holds NaN or infinity")
    return mask[:, None].float().clamp(0, 1)


def one_mask(name: str, mask: torch.Tensor | None) -> torch.Tensor | None:
    """:func:`mask_grid` of one picture: the first of a batch."""
    grid = mask_grid(name, mask)
    return None if grid is None else grid[:1]
