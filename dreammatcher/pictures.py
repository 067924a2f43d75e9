"""Pictures as RGB, whichever way they come: transparent parts become grey. Also draws a text as a picture."""

from __future__ import annotations

import textwrap

import torch
from PIL import Image, ImageDraw, ImageFont

#: of pictures with texts on them
MARGIN, PAPER, INK = 10, (24, 24, 28), (235, 235, 235)  # pixels, colours

COLOURS = {1: 1, 2: 1, 3: 3, 4: 3}  # channels of an IMAGE -> those of them that are colours; the last of 2 and 4 is alpha
OPAQUE = 0.99  # hosts load an alpha of 255 as 255/256 at the least
GREY = 0.5  # under what is transparent


def rgb(name: str, image: torch.Tensor) -> torch.Tensor:
    """``image`` as [B, H, W, 3]: grey becomes colour, transparent pixels become neutral grey.

    What colour a file has under its transparent pixels is chance, and black or white ones lead the match astray. Raises
    ValueError, naming the input, when it is no IMAGE.
    """
    alpha, colours = alpha_of(name, image), image[..., :COLOURS[image.shape[-1]]]
    if alpha is not None:
        colours = GREY + alpha[..., None].to(colours) * (colours - GREY)
    return colours.expand(-1, -1, -1, 3)


def alpha_of(name: str, image: torch.Tensor) -> torch.Tensor | None:
    """Alpha [B, H, W] of ``image`` in 0..1, or None where nothing is transparent. Raises ValueError as :func:`rgb` does."""
    if image.ndim != 4 or 0 in image.shape or image.shape[-1] not in COLOURS:
        raise ValueError(f"{name}: an IMAGE is [batch, height, width, channels] with 1, 3 or 4 channels; this one is "
                         f"{tuple(image.shape)}")
    if image.shape[-1] == COLOURS[image.shape[-1]]:
        return None
    alpha = image[..., -1].clamp(0, 1)
    if alpha.isnan().any():
        raise ValueError(f"{name}: its alpha channel holds NaN")
    return None if bool((alpha >= OPAQUE).all()) else alpha


def card(text: str) -> Image.Image:
    """A PIL picture with a text on it, for a run without anything to show."""
    lines = textwrap.wrap(text, 44)
    page = Image.new("RGB", (640, MARGIN * 2 + 34 * len(lines)), PAPER)
    ImageDraw.Draw(page).multiline_text((MARGIN, MARGIN), "\n".join(lines), INK, ImageFont.load_default(26), spacing=6)
    return page
