"""Height and width of what is a picture in some way."""

from __future__ import annotations

import torch


def spatial_size(x: torch.Tensor) -> tuple[int, int]:
    """Height and width of pictures, latents or maps [..., H, W]."""
    return x.shape[-2], x.shape[-1]
