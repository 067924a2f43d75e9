"""Turns the host's MASK ([B, H, W] in 0..1) into masks of one channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

#: a MASK, or a list of MASKs whose sizes may differ
Masks = torch.Tensor | Sequence[torch.Tensor]


@overload
def mask_grid(name: str, mask: torch.Tensor) -> torch.Tensor: ...


@overload
def mask_grid(name: str, mask: None) -> None: ...


@overload
def mask_grid(name: str, mask: torch.Tensor | None) -> torch.Tensor | None: ...


def mask_grid(name: str, mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask as [B, 1, H, W] in 0..1, or None for no mask. Raises ValueError, naming the input, when it is no MASK."""
    if mask is None:
        return None
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"{name}: a MASK is [batch, height, width]; this one is {tuple(mask.shape)}")
    if not torch.isfinite(mask).all():
        raise ValueError(f"{name}: it holds NaN or infinity")
    return mask[:, None].float().clamp(0, 1)


def each_mask(name: str, masks: Masks) -> list[torch.Tensor]:
    """Every mask of a MASK, or of a list of MASKs, as [1, H, W]. Raises ValueError as :func:`mask_grid` does."""
    batches = [masks] if torch.is_tensor(masks) else [one for one in masks if one is not None]
    return [mask for batch in batches for mask in mask_grid(name, batch)]


def one_mask(name: str, mask: torch.Tensor | None) -> torch.Tensor | None:
    """:func:`mask_grid` of one picture: the first of a batch."""
    grid = mask_grid(name, mask)
    return None if grid is None else grid[:1]
