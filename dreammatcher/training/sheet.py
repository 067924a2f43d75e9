"""A sheet that grows with a training: a row of pictures for every step that is kept, of the same prompts and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ..files import atomic_write
from .curve import INK, PAPER

SIDE, GAP, LABEL, HEAD = 192, 6, 96, 28  # pixels: of a picture, between two, of the step's number, of the prompts above
#: name of the text in the PNG that says which steps and prompts it shows
TEXT = "dreammatcher"
LETTER = 7  # pixels
#: raised for what is no picture, is damaged, or has grown beyond what PIL opens
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class Sheet:
    """Rows of pictures by their step, one picture for each of ``prompts``."""

    prompts: tuple[str, ...]
    rows: Mapping[int, Image.Image] = field(default_factory=dict)  # step -> its pictures side by side

    @property
    def width(self) -> int:
        return len(self.prompts) * (SIDE + GAP)

    def with_row(self, step: int, pictures: Sequence[Image.Image]) -> Sheet:
        """The sheet with the pictures of a step, in place of those that it had. Raises ValueError unless each prompt has one."""
        if len(pictures) != len(self.prompts):
            raise ValueError(f"pictures: there are {len(pictures)} for {len(self.prompts)} prompts")
        row = Image.new("RGB", (self.width, SIDE), PAPER)
        for number, picture in enumerate(pictures):
            row.paste(_fitted(picture), (number * (SIDE + GAP), 0))
        return Sheet(self.prompts, {**self.rows, step: row})

    def page(self) -> Image.Image:
        """The rows below each other in the order of their steps, the prompts above."""
        page = Image.new("RGB", (LABEL + self.width, HEAD + len(self.rows) * (SIDE + GAP)), PAPER)
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
        for number, prompt in enumerate(self.prompts):
            said = prompt if len(prompt) <= SIDE // LETTER else f"{prompt[:SIDE // LETTER - 1]}…"
            draw.text((LABEL + number * (SIDE + GAP), 6), said, INK, font)
        for number, step in enumerate(sorted(self.rows)):
            top = HEAD + number * (SIDE + GAP)
            draw.text((8, top + SIDE // 2 - 8), f"step {step}", INK, font)
            page.paste(self.rows[step], (LABEL, top))
        return page

    def write(self, path: Path) -> None:
        """Writes the page as PNG, whole or not at all. Raises OSError where that cannot be."""
        about = PngImagePlugin.PngInfo()
        about.add_text(TEXT, json.dumps({"prompts": self.prompts, "steps": sorted(self.rows)}))
        with atomic_write(path) as partial:
            self.page().save(partial, "PNG", pnginfo=about)


def read(path: Path, prompts: tuple[str, ...]) -> Sheet:
    """The sheet of these ``prompts`` that :meth:`Sheet.write` wrote; an empty one where there is none, or one of others."""
    empty = Sheet(prompts)
    try:
        with Image.open(path) as image:
            said = json.loads(getattr(image, "text", {}).get(TEXT, "{}"))
            page = image.convert("RGB")
    except UNREADABLE:
        return empty
    if tuple(said.get("prompts", ())) != prompts:
        return empty
    tops = [HEAD + number * (SIDE + GAP) for number in range(len(said["steps"]))]
    return Sheet(prompts, {step: page.crop((LABEL, top, LABEL + empty.width, top + SIDE))
                           for step, top in zip(said["steps"], tops, strict=True)})


def read_page(path: Path) -> Image.Image | None:
    """The page that :meth:`Sheet.write` wrote, or None where there is none that can be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UNREADABLE:
        return None


def _fitted(picture: Image.Image) -> Image.Image:
    """A picture of any shape on a square of :data:`SIDE`, all of it."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    square.paste(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC),
                 ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square
