"""Applies what was learned to a model, and saves it where the host's own loaders look."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import comfy.sd
import folder_paths
import torch

from ...files import check_file_name, write_tensors
from ...finite import finite
from ...texts import alone, holds
from ...training.adapters import MAGNITUDES
from ...training.curve import curve
from ...training.export import Learned, embedding_tensors
from ...training.metadata import EMBEDDING, LORA, own_head
from ..graph.pictures import image_of
from ..text.new_words import with_new_words

#: in the head of a LoRA's file: the words that were learned with it, and the names of their embeddings
WORDS = "dreammatcher_words"
#: share of a tensor that half precision may cost; rounding costs 0.0003, numbers under its smallest one all of it
LOST = 0.01


def apply_learned(model, clip, learned: Learned, strength_model: float = 1.0, strength_clip: float = 1.0) -> tuple:
    """Clones of MODEL and CLIP with what was learned, by the host's own LoRA code; CLIP also knows the learned words.

    Raises ValueError for words that this model cannot read, and for values that are not finite.
    """
    check_finite(learned)
    if learned.lora:
        model, clip = comfy.sd.load_lora_for_models(model, clip, learned.lora, strength_model, strength_clip)
    return model, with_new_words(clip, learned.embeddings)


def check_finite(learned: Learned) -> None:
    """Raises ValueError, naming it, for a tensor with NaN or infinity: it would draw black pictures."""
    for name, value in (*learned.lora.items(), *learned.embeddings.items()):
        if not finite(value):
            raise ValueError(f"learned: {name} holds NaN or infinity; the file it comes from is damaged, or the training "
                             "that made it ran away: train again with a lower rate")


def half(value: torch.Tensor) -> torch.Tensor:
    """``value`` in half precision, or in float32 where half has no number for it: beyond 65504, or next to zero."""
    if value.element_size() == 1:
        value = value.float()  # torch subtracts no eight-bit floats
    short = value.half()
    if finite(short) and (value - short.to(value)).norm() <= LOST * value.norm():
        return short
    return value.float()


@dataclass(frozen=True)
class Files:
    """Paths of something that was learned and saved."""

    name: str  # that it was saved under
    file: Path | None  # a LoRA, or a method's own
    words: dict[str, Path]  # word -> its embedding

    @property
    def first(self) -> Path:
        return self.file or next(iter(self.words.values()))


def save_learned(learned: Learned, name: str) -> tuple[Path, str]:
    """Saves a LoRA, an embedding or both; returns the path of the first and how they are used.

    A LoRA goes to the first folder of LoRAs, in half precision where that holds its values, an embedding to that of embeddings. A
    file that is there is never overwritten. Raises ValueError for a name that is no plain file name, when there is nothing to
    save, and for values that are not finite.
    """
    files = write_learned(learned, name)
    said, shown = [], {word: f"embedding:{path.stem}" for word, path in files.words.items()}
    for word, path in files.words.items():
        written = in_prompts(learned.about, {word: shown[word]})
        said.append(f"Saved as {path}, the word {word!r}. Write {written} in prompts." if len(learned.embeddings) > 1 else
                    f"Saved as {path}. Write {written} in prompts.")
    if files.file:
        said.append(f"Saved as {files.file}. Load it with Load LoRA, and write {in_prompts(learned.about, shown)} in prompts.")
    return files.first, "\n".join(said)


def write_learned(learned: Learned, name: str, replaced: Files | None = None) -> Files:
    """Writes what :func:`save_learned` saves, in place of the files ``replaced`` if they are given. Raises as that does."""
    check_name(name)
    check_finite(learned)
    if not (learned.lora or learned.embeddings):
        raise ValueError("learned: it is empty, so there is nothing to save")
    name = replaced.name if replaced else free_name(name.strip(), [(_folder("loras"), str)] * bool(learned.lora) +
                                                    [(_folder("embeddings"), word_name)] * bool(learned.embeddings))
    words: dict[str, Path] = {}
    for word, rows in learned.embeddings.items():
        words[word] = (replaced and replaced.words.get(word)) or _free("embeddings", word_name(name))
        _write(words[word], embedding_tensors(rows, learned.about),
               own_head(learned.about, words[word].stem, EMBEDDING, time.time()))
    lora: Path | None = None
    if learned.lora:
        lora = (replaced and replaced.file) or _free("loras", name)
        # DoRA's magnitudes multiply whole weights: rounded ones would change these as much as a LoRA does
        exact = {key for key, value in learned.lora.items() if not value.ndim or key.endswith(MAGNITUDES)}
        halves = {key: value if key in exact else half(value) for key, value in learned.lora.items()}
        beside = {word: path.stem for word, path in words.items()}
        about = own_head(learned.about, lora.stem, LORA, time.time())
        _write(lora, halves, {**about, WORDS: json.dumps(beside)} if beside else about)
    return Files(name, lora, words)


def in_prompts(about: Mapping[str, str], files: Mapping[str, str]) -> str:
    """The words to write for the subject: those of its captions, with ``files`` (word -> embedding:NAME) in place of words."""
    subject, known = about.get("subject", ""), [word for word in files if holds(about.get("subject", ""), word)]
    for word in known:
        subject = files[word].join(re.split(alone(word), subject))
    if files and not known:
        return " and ".join(files.values())
    return subject or "the words that it was trained with"


def check_name(name: str) -> None:
    """Raises ValueError for what is no plain name of a file."""
    check_file_name("name", name)


def free_name(name: str, places: Sequence[tuple[Path, Callable[[str], str]]]) -> str:
    """``name``, with a number where one of the files that belong together is there: their folders, and how they spell it."""
    return next(one for one in numbered_names(name)
                if not any((folder / f"{spelled(one)}.safetensors").exists() for folder, spelled in places))


def save_with_word(folder: Path, name: str, tensors: Mapping[str, torch.Tensor], about: dict[str, str],
                   word: Mapping[str, torch.Tensor], about_word: dict[str, str], replaced: Files | None = None) -> Files:
    """Writes what was learned to ``folder``, and its word, ``about_word["word"]``, to the host's embeddings under the same name.

    A file that is there is never overwritten but for those of ``replaced``. Raises ValueError for a name that is no plain file
    name.
    """
    check_name(name)
    name = replaced.name if replaced else free_name(name.strip(), [(folder, str), (_folder("embeddings"), word_name)])
    said, old = about_word["word"], replaced.words if replaced else {}
    files = Files(name, (replaced and replaced.file) or free_path(folder, name),
                  {said: old.get(said) or _free("embeddings", word_name(name))})
    _write(files.first, tensors, about)
    _write(files.words[said], word, about_word)
    return files


def word_name(name: str) -> str:
    """A name as an embedding spells it: without spaces, at which prompts are split."""
    return name.replace(" ", "_")


def _folder(kind: str) -> Path:
    return Path(folder_paths.get_folder_paths(kind)[0])


def _free(kind: str, name: str) -> Path:
    """A path in the first folder of a ``kind`` of models that no file has."""
    return free_path(_folder(kind), name)


def free_path(folder: Path, name: str) -> Path:
    """``name.safetensors`` in a folder, which is made; with a number where a file has that name."""
    folder.mkdir(parents=True, exist_ok=True)
    return next(path for one in numbered_names(name) if not (path := folder / f"{one}.safetensors").exists())


def numbered_names(name: str) -> Iterator[str]:
    """``name``, ``name_2``, ``name_3`` and so on."""
    yield name
    yield from (f"{name}_{number}" for number in count(2))


def _write(path: Path, tensors: Mapping[str, torch.Tensor], about: dict[str, str]) -> None:
    write_tensors(path, tensors, {"format": "pt", **about})


def curve_image(losses: list[float], steps: int) -> torch.Tensor:
    """The loss as the host's IMAGE, [1, H, W, 3] in 0..1."""
    return image_of(curve(losses, steps))
