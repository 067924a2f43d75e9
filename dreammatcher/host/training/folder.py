"""Pictures of a folder in the host's input folder, each with the caption of a text file beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import folder_paths
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError

from ..graph.changes import Changes, changes, changes_of_all
from ..graph.files import walk
from ..graph.notes import tell
from ..graph.pictures import rgb, subject_mask
from .caption_files import caption_of

LARGEST = 2048  # pixels of a side: twice what SDXL learns from
CLIPBOARD = "clipspace"
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp")
#: endings of pictures that are not read: several frames or layers, or for want of a decoder everywhere
NOT_READ = (".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".gif", ".apng", ".tif", ".tiff", ".tga", ".ico", ".svg", ".dds",
            ".psd", ".xcf", ".kra", ".exr", ".hdr", ".mpo", ".pcx", ".ppm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf",
            ".orf", ".rw2")


@dataclass(frozen=True, eq=False)
class FolderPicture:
    """One picture of a folder."""

    path: Path
    picture: torch.Tensor  # [3, H, W] in 0..1, grey where it is transparent
    mask: torch.Tensor | None  # [1, H, W], white where the picture is not transparent
    caption: str = ""  # of the text file; empty without one
    text: str = ""  # name of that file


def folder_path(name: str) -> Path:
    """A folder of the host's input folder, or one that a link there leads to.

    Raises ValueError for a folder that is not there, lies outside of the input folder, or is a link to nothing.
    """
    root = Path(os.path.abspath(folder_paths.get_input_directory()))
    path = Path(os.path.abspath(root / name.strip()))  # ".." is taken out of the name, links are not followed
    if not (path.is_relative_to(root) or path.resolve().is_relative_to(root.resolve())):
        raise ValueError(f"folder: {name!r} lies outside of {root}; put the pictures into a folder there, or a link to theirs")
    if not path.is_dir():
        link = next((one for one in (path, *path.parents) if one.is_symlink() and not one.exists()), None)
        raise ValueError(f"folder: {name!r} is no folder in {root}" if link is None else
                         f"folder: {name!r} is a link to nothing ({link.name} leads to {os.readlink(link)}); make it anew")
    return path


def changed(name: str | None) -> Changes:
    """State of the folder's files; empty without a folder.

    A name of None stands for a linked value that is not known yet: the state then covers every folder in the input folder,
    but for the one in which the host keeps copies.
    """
    root = Path(os.path.abspath(folder_paths.get_input_directory()))
    if name is None:
        return changes_of_all({name: _inside(Path(place)) for place, _, _ in walk(root)
                               if (name := _name(place, root)).split("/")[0] not in (CLIPBOARD, ".")})
    try:
        path = folder_path(name) if name.strip() else None
        return changes({} if path is None else {_name(path, root): _inside(path)})
    except ValueError:  # said when the node runs
        return changes({})


def _name(folder: str | Path, root: Path) -> str:
    return Path(os.path.relpath(folder, root)).as_posix()


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # it may not be read
        return []


def pictures_of(name: str) -> list[FolderPicture]:
    """The folder's pictures by name, turned as the camera says. What looks like one and is not read is named on the node.

    Raises ValueError, naming the file, for a picture that is damaged and a caption that is no text in UTF-8.
    """
    path = folder_path(name)
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    named = [file for file in files if file.suffix.lower() in SUFFIXES and not file.is_dir()]
    pictures = [file for file in named if file.is_file()]
    remarks = [f"{file.name} is a link to nothing ({os.readlink(file)})" if file.is_symlink() else f"{file.name} is no file"
               for file in named if file not in pictures]
    others = [file.name for file in files if file.suffix.lower() in NOT_READ and not file.is_dir()]
    if others:
        remarks.append(f"{', '.join(others)}: {', '.join(sorted({Path(other).suffix.lower() for other in others}))} is not read; "
                       "save as PNG or JPEG")
    inner = [file.name for file in files if file.is_dir() and any(
        one.suffix.lower() in (*SUFFIXES, *NOT_READ) and not one.is_dir() for one in file.iterdir())]
    if inner:
        remarks.append(f"the folders in it ({', '.join(inner)}); give each as the folder of a Training Set (DreamMatcher) of its "
                       "own, joined by others")
    if not pictures:
        left = f"; {'; '.join(remarks)}" if remarks else ""
        raise ValueError(f"folder: {name!r} holds no pictures ({', '.join(SUFFIXES)}){left}")
    if remarks:
        remarks = [f"left out of the folder {name!r}: {'; '.join(remarks)}"]
    examples = []
    for file in pictures:
        caption, text, said = caption_of(file, files)
        examples.append(replace(_read(file), caption=caption, text=text))
        remarks += said
    if remarks:
        tell("; ".join(remarks))
    return examples


def _upright(image: Image.Image) -> Image.Image:
    """The picture as the camera held it, in eight bits, no larger than is of use."""
    if image.mode in ("P", "PA", "LA"):  # colours under what is transparent must not bleed while it is made smaller
        image = image.convert("RGBA")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image


def _read(file: Path) -> FolderPicture:
    try:
        with Image.open(file) as image:
            pixels = np.array(_upright(image).convert("RGBA"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"folder: {file.name} is damaged or no picture ({error})") from error
    name, picture = f"folder: {file.name}", torch.from_numpy(pixels)[None].float() / 255
    return FolderPicture(file, rearrange(rgb(name, picture)[0], "h w c -> c h w").clone(), subject_mask(name, picture))
