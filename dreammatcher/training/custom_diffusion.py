"""Custom Diffusion (Kumari et al. 2023): keys and values of cross-attention, and one new word, learn a concept.

Sources of the numbers: Sec. 3.2 and the authors' code, as diffusers' train_custom_diffusion.py has it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..backbones.unet import KEYS_AND_VALUES
from .data import Example, fitted
from .trainables import Full

#: share of pictures that are shown smaller than they are, and between which shares of the side; the others are shown larger
SMALLER_SHARE, SMALLER, LARGER = 0.66, (1 / 3, 1.0), (1.2, 1.4)
#: what a caption begins with where a picture is shown at under 0.6 of its size, or larger than it is
FAR_BELOW, FAR, CLOSE = 0.6, ("a far away", "very small"), ("zoomed in", "close up")
CELL = 8  # pixels of a latent's cell


def keys_and_values_of(weights: Mapping[str, torch.Tensor], rate: float) -> Full:
    """Differences to the projections that read the text (Sec. 3.2). Raises ValueError when there are none."""
    shapes = {name: value.shape for name, value in weights.items() if name.endswith(KEYS_AND_VALUES)}
    if not shapes:
        raise ValueError("model: it has no cross-attention, whose keys and values Custom Diffusion trains")
    return Full(shapes, rate)


def first_token_constant(projected: torch.Tensor) -> torch.Tensor:
    """Keys or values [B, L, D] whose first one, of the start token, learns nothing: it stands for every prompt."""
    return torch.cat([projected[:, :1].detach(), projected[:, 1:]], 1)


def at_sizes(example: Example, side: int, count: int, generator: torch.Generator) -> list[Example]:
    """``count`` versions of a picture on squares of ``side`` pixels, small on black or large and cut, captions saying so.

    A version's mask is where the picture is, less a cell around it, within the picture's own mask.
    """
    picture = fitted(example.picture, (side, side))
    mask = torch.ones(1, side, side) if example.mask is None else fitted(example.mask, (side, side))
    versions: list[Example] = []
    while len(versions) < count:
        version = _at_size(picture, mask, example.captions, generator)
        if _shows(version.mask) or not _shows(mask):  # else the subject is outside of what is shown
            versions.append(version)
    return versions


def _shows(mask: torch.Tensor | None) -> bool:
    return mask is None or bool((mask > 0.5).any())


def _at_size(picture: torch.Tensor, mask: torch.Tensor, captions: tuple[str, ...], generator: torch.Generator) -> Example:
    side = picture.shape[-1]
    smaller = _between(0, 1, generator) < SMALLER_SHARE
    factor = _between(*(SMALLER if smaller else LARGER), generator)
    size = max(2 * CELL + 1, round(factor * side))
    image, scaled = fitted(picture, (size, size)), fitted(mask, (size, size))
    room = abs(size - side)
    top, left = (int(torch.randint(room + 1, (1,), generator=generator)) for _ in range(2))
    if size > side:
        image, scaled = (each[:, top:top + side, left:left + side] for each in (image, scaled))
        return Example(image, _said(captions, CLOSE, generator), scaled)
    shown, valid = torch.zeros_like(picture), torch.zeros_like(mask)
    shown[:, top:top + size, left:left + size] = image
    inner = slice(CELL, size - CELL)
    valid[:, top + CELL:top + size - CELL, left + CELL:left + size - CELL] = scaled[:, inner, inner]
    return Example(shown, _said(captions, FAR, generator) if factor < FAR_BELOW else captions, valid)


def _said(captions: tuple[str, ...], words: tuple[str, str], generator: torch.Generator) -> tuple[str, ...]:
    """Captions that begin with one of two expressions, in place of an article: "very small photo of a <new1> dog"."""
    chosen = words[int(torch.randint(2, (1,), generator=generator))]
    return tuple(f"{chosen} {caption.removeprefix('a ').removeprefix('the ')}" for caption in captions)


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))
