"""Height and width of what is a picture in some way."""

from __future__ import annotations

import torch


def spatial_size(x: torch.Tensor) -> tuple[int, int]:
    """Height and width of pictures, latents or maps [..., H, W]."""
    return x.shape[-2], x.shape[-1]


def single_frame(x: torch.Tensor) -> torch.Tensor:
    """A latent [B, C, H, W] as it is, or the first frame of one with frames [B, C, T, H, W]."""
    return x[:, :, 0] if x.ndim == 5 else x


def with_frame(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A latent [B, C, H, W] in the form of ``like``: with one frame, [B, C, 1, H, W], where that has frames."""
    return x.unsqueeze(2) if like.ndim == 5 else x
