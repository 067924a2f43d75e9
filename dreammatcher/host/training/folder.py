"""Pictures of a folder in the host's input folder, each with the caption of a text file beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError

from ..changes import Changes, changes
from ..pictures import rgb, subject_mask

LARGEST = 2048  # pixels of a side: twice what SDXL learns from
CLIPBOARD = "clipspace"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class Found:
    """One picture of a folder."""

    path: Path
    picture: torch.Tensor  # [3, H, W] in 0..1, grey where it is transparent
    mask: torch.Tensor | None  # [1, H, W], white where the picture is not transparent
    caption: str  # of the text file; empty without one


def folder_path(name: str) -> Path:
    """Raises ValueError for a folder that is not there or lies outside of the host's input folder."""
    root = Path(folder_paths.get_input_directory()).resolve()
    path = (root / name.strip()).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"folder: {name!r} lies outside of {root}; put the pictures into a folder there")
    if not path.is_dir():
        raise ValueError(f"folder: {name!r} is no folder in {root}")
    return path


def changed(name: str | None) -> Changes:
    """What the folder's files are; nothing without a folder.

    A name of None stands for a linked value that is not known yet: what those of every folder in the input folder are, but for
    the one in which the host keeps what was copied.
    """
    root = Path(folder_paths.get_input_directory()).resolve()
    if name is None:
        return changes({path.relative_to(root).as_posix(): path.iterdir() for path in root.rglob("*")
                        if path.is_dir() and path.relative_to(root).parts[0] != CLIPBOARD})
    try:
        path = folder_path(name) if name.strip() else None
    except ValueError:  # said when the node runs
        path = None
    return changes({} if path is None else {path.relative_to(root).as_posix(): path.iterdir()})


def pictures_of(name: str) -> list[Found]:
    """The folder's pictures by name, turned as the camera says. Raises ValueError, naming the file, for one that is damaged."""
    path = folder_path(name)
    files = sorted(file for file in path.iterdir()
                   if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith("."))
    if not files:
        raise ValueError(f"folder: {name!r} holds no pictures ({', '.join(SUFFIXES)})")
    return [_read(file) for file in files]


def _upright(image: Image.Image) -> Image.Image:
    """The picture as the camera held it, in eight bits, no larger than is of use."""
    if image.mode in ("P", "PA", "LA"):  # colours under what is transparent must not bleed while it is made smaller
        image = image.convert("RGBA")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image


def _read(file: Path) -> Found:
    try:
        with Image.open(file) as image:
            pixels = np.array(_upright(image).convert("RGBA"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"folder: {file.name} is damaged or no picture ({error})") from error
    name, picture = f"folder: {file.name}", torch.from_numpy(pixels)[None].float() / 255
    text = file.with_suffix(".txt")
    caption = text.read_text(encoding="utf-8-sig", errors="replace") if text.is_file() else ""
    return Found(file, rearrange(rgb(name, picture)[0], "h w c -> c h w").clone(), subject_mask(name, picture),
                 " ".join(caption.split()))
