"""Turns the host's IMAGE ([B, H, W, C] in 0..1), or a list of them, into single pictures and the masks of alpha channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ...pictures import alpha_of, card, rgb

__all__ = ["Images", "alpha_of", "each", "image_of", "rgb", "rgb_each", "rough_rgb", "subject_mask", "text_image"]

#: an IMAGE, or a list of IMAGEs whose sizes may differ
Images = torch.Tensor | Sequence[torch.Tensor]


def each(name: str, images: Images) -> list[torch.Tensor]:
    """Every picture of an IMAGE, or of a list of IMAGEs whose sizes may differ, as an IMAGE [1, H, W, C] of its own.

    Raises ValueError, naming the input, when one of them is no IMAGE, or when there is none.
    """
    batches = [images] if torch.is_tensor(images) else [one for one in images if one is not None]
    for batch in batches:
        alpha_of(name, batch)
    pictures = [picture[None] for batch in batches for picture in batch]
    if not pictures:
        raise ValueError(f"{name}: the list of pictures is empty; connect at least one")
    return pictures


def rgb_each(name: str, images: Images) -> list[torch.Tensor]:
    """:func:`rgb` of every picture of :func:`each`, [H, W, 3]."""
    return [rgb(name, picture)[0] for picture in each(name, images)]


def subject_mask(name: str, image: torch.Tensor) -> torch.Tensor | None:
    """MASK [B, H, W], white where ``image`` is not transparent, or None where all of it is opaque.

    Raises ValueError, naming the input, when nothing of it is to be seen.
    """
    alpha = alpha_of(name, image)
    if alpha is not None and not bool((alpha > 0.5).any()):
        raise ValueError(f"{name}: all of it is transparent, so there would be nothing to match; invert the mask that was joined "
                         "with it, or give the picture without its alpha channel")
    return alpha


def text_image(text: str) -> torch.Tensor:
    """IMAGE [1, H, W, 3] of a text, where there is no picture to show."""
    return image_of(card(text))


def image_of(page: Image.Image) -> torch.Tensor:
    """IMAGE [1, H, W, 3] of a PIL picture in RGB."""
    return torch.from_numpy(np.array(page)).float()[None] / 255


def rough_rgb(latent: torch.Tensor, formats: object) -> torch.Tensor:
    """A latent [C, h, w] as rough RGB [3, h, w] by the factors of the host's latent format, or as grey where that has none."""
    factors = getattr(formats, "latent_rgb_factors", None)
    if factors is None or len(factors) != latent.shape[0]:
        return latent.mean(0, keepdim=True).expand(3, -1, -1).sigmoid()
    colours = torch.einsum("chw,cr->rhw", latent, torch.tensor(factors))
    bias = getattr(formats, "latent_rgb_factors_bias", None)
    if bias is not None:
        colours = colours + torch.tensor(bias)[:, None, None]
    return ((colours + 1) / 2).clamp(0, 1)
