"""Text files beside pictures, as people and their programs write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...texts import read_text

#: endings of caption files in any case, best first: this pack's, and the default of kohya's scripts
ENDINGS = (".txt", ".caption")


def captions_of(picture: Path, files: Sequence[Path]) -> list[Path]:
    """The captions of ``picture`` among a folder's ``files``, beginning with the one to use.

    Their name is the picture's, with another ending; capitals only count where two files differ in nothing else.
    """
    captions = [file for file in files if file.suffix.lower() in ENDINGS and file.stem.lower() == picture.stem.lower()]
    return sorted(captions, key=lambda file: (file.stem != picture.stem, ENDINGS.index(file.suffix.lower()), file.name))


def caption_of(picture: Path, files: Sequence[Path]) -> tuple[str, str, list[str]]:
    """The caption of ``picture`` in one line, the name of its file, and remarks for the user. Empty without a caption.

    Raises ValueError as :func:`read_text`.
    """
    captions = captions_of(picture, files)
    if any(file.stem == picture.stem for file in captions):
        captions = [file for file in captions if file.stem == picture.stem]
    there = [file for file in captions if file.exists()]
    remarks = [f"{file.name} is a link to nothing" for file in captions if file not in there]
    if not there:
        return "", "", remarks
    caption = " ".join(read_text("folder", there[0]).split())
    if not caption:
        remarks.append(f"{there[0].name} is empty, so {picture.name} is called by the template")
    if len(there) > 1 and " ".join(read_text("folder", there[1]).split()) != caption:
        remarks.append(f"{picture.name} has two captions; that of {there[0].name} is used, not that of {there[1].name}")
    return caption, there[0].name, remarks
