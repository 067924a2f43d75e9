"""Folder and files of SeFi-IDE's saved subjects."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...files import read_tensors, refused_if_damaged
from ...sefi.learned import FORMAT, KEYS, VALUES, SeFi
from ...training.export import embedding_tensors
from ..graph.files import Shelf
from ..training.keep import Files, save_with_word

SHELF = Shelf("sefi", "save one with SeFi Save (DreamMatcher), or put a file there")


def save_sefi(sefi: SeFi, name: str) -> tuple[Path, str]:
    """Writes the vectors to the models folder's sefi, and their mean as a plain embedding; returns the first path and how both
    are used. A file that is there is never overwritten. Raises ValueError for a name that is no plain file name."""
    files = write_sefi(sefi, name)
    path, word = files.first, files.words[sefi.word]
    return path, (f"Saved as {path}. Load it with SeFi Load (DreamMatcher), and write {sefi.word} in SeFi Prompt "
                  "(DreamMatcher).\n"
                  f"For graphs without this pack: {word}, a plain embedding that holds less of the subject.")


def write_sefi(sefi: SeFi, name: str, replaced: Files | None = None) -> Files:
    """Writes what :func:`save_sefi` saves, in place of the files ``replaced`` if they are given. Raises as that does."""
    return save_with_word(Path(folder_paths.models_dir) / SHELF.name, name, {KEYS: sefi.keys, VALUES: sefi.values},
                          {**sefi.about, "format": FORMAT}, embedding_tensors(sefi.fallback(), sefi.about),
                          {"word": sefi.word}, replaced)


def load_sefi(name: str) -> SeFi:
    """Loads a subject by its file's name.

    Raises ValueError, naming the file, for one that is damaged or holds something else; and as :meth:`Shelf.find`.
    """
    path = SHELF.find(name)
    with refused_if_damaged(f"file: {path.name}", "save it again"):
        tensors, about = read_tensors(path)
    if about.get("format") != FORMAT or set(tensors) != {KEYS, VALUES}:
        raise ValueError(f"file: {path.name} is no SeFi-IDE subject: it holds {', '.join(sorted(tensors)[:4]) or 'nothing'}, not "
                         f"{KEYS} and {VALUES}")
    try:
        return SeFi(tensors[KEYS].float(), tensors[VALUES].float(), {**about, "file": path.name})
    except ValueError as error:
        raise ValueError(f"file: {path.name} is no SeFi-IDE subject: {error}") from error
