"""Folder and files of ViCo: ours, and the pair that the authors' code writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import folder_paths
import torch

from ...files import read_tensors, refused_if_damaged
from ...vico.learned import ViCo
from ..graph.files import Shelf
from ..training.keep import Files, in_prompts, save_with_word

FORMAT = "vico"
SHELF = Shelf("vico", "save one with ViCo Save (DreamMatcher), or put a file there", (".safetensors", ".pt"))
#: in front of the names in the authors' cross_attention-399.pt
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
ROWS = "clip_l"
#: instead of the name of the authors' second file
IN_THE_FILE = "(in the file)"


def save_vico(vico: ViCo, name: str) -> tuple[Path, str]:
    """Writes the blocks with the word to the models folder's vico, and the word once more as an embedding; returns the first path
    and how both are used. A file that is there is never overwritten. Raises ValueError for a name that is no plain file name."""
    files = write_vico(vico, name)
    path, word = files.first, files.words[vico.word]
    return path, (f"Saved as {path}. Load it with ViCo Load (DreamMatcher).\nIts word is saved as {word}: write "
                  f"{in_prompts(vico.about, {vico.word: f'embedding:{word.stem}'})} in prompts.")


def write_vico(vico: ViCo, name: str, replaced: Files | None = None) -> Files:
    """Writes what :func:`save_vico` saves, in place of the files ``replaced`` if they are given. Raises as that does."""
    about = {**vico.about, "format": FORMAT, "sites": ",".join(map(str, vico.sites()))}
    return save_with_word(Path(folder_paths.models_dir) / SHELF.name, name, {**vico.tensors, ROWS: vico.rows}, about,
                          {ROWS: vico.rows}, {"format": "pt", "word": vico.word}, replaced)


def load_vico(name: str, words: str = IN_THE_FILE) -> ViCo:
    """Loads one of our files, or the authors' cross_attention-399.pt with ``words``, the name of its embeddings_gs-399.pt.

    Raises ValueError, naming the file, for one that is damaged, holds code, or is neither; and as :meth:`Shelf.find`.
    """
    path = SHELF.find(name)
    tensors, about = _read(path)
    rows = tensors.pop(ROWS, None)
    if words != IN_THE_FILE:
        rows, about["word"] = _word_of(SHELF.find(words))
    if rows is None:
        raise ValueError(f"file: {name} holds no word; choose the file embeddings_gs of the same training as embedding")
    about.setdefault("word", f"<{_stem(path)}>")
    try:
        return ViCo({_plain(key): value.float() for key, value in tensors.items()}, rows.float(), {**about, "file": path.name})
    except ValueError as error:
        raise ValueError(f"file: {name} is no ViCo model: {error}") from error


def _stem(path: Path) -> str:
    return re.sub(r"[^\w-]", "", path.stem) or "learned"


def _plain(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if path.suffix == ".pt":
        content = weights_only(path)
        wrong = next((key for key, value in content.items() if not torch.is_tensor(value)), None)
        if wrong is not None:
            raise ValueError(f"file: {path.name} holds {wrong!r}, which is no weight; choose the file cross_attention as file")
        return dict(content), {}
    with refused_if_damaged(f"file: {path.name}", "save it again"):
        return read_tensors(path)


def _word_of(path: Path) -> tuple[torch.Tensor, str]:
    """The vectors [V, D] and the word of an embedding: the authors' file, or one of a single tensor."""
    if path.suffix == ".pt":
        content: Mapping = weights_only(path)
        content = content.get("string_to_param", content)
    else:
        content = {name: value for name, value in _read(path)[0].items() if name == ROWS or value.ndim <= 2}
    tensors = {word: value for word, value in content.items() if torch.is_tensor(value)}
    if len(tensors) != 1:
        raise ValueError(f"embedding: {path.name} holds {len(tensors)} words; ViCo has one")
    (word, rows), = tensors.items()
    return rows.detach() if rows.ndim == 2 else rows.detach()[None], word if word != ROWS else f"<{_stem(path)}>"


def weights_only(path: Path) -> Mapping:
    """The content of a torch file, without running any code in it. Raises ValueError, naming the file, when that cannot be."""
    allowed = getattr(torch.serialization, "safe_globals", nullcontext)  # since torch 2.5; before, such files are refused
    try:
        with allowed([torch.nn.ParameterDict]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip have errors of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"file: {path.name} cannot be read ({reason}); only weights are read, never code") from error
    if isinstance(content, torch.nn.ParameterDict):
        return dict(content.items())
    if not isinstance(content, Mapping):
        raise ValueError(f"file: {path.name} holds {type(content).__name__} and no weights by name")
    return content
