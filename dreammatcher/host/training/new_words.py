"""A CLIP that knows words which were learned: in its prompts each stands for the vectors of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .model import MARKER


class NewWords:
    """A host's tokenizer around which learned words become their vectors. Everything else of it is as it was.

    ``words``: word -> vectors [V, D]. A word is found where it stands alone, so "sks" is not in "risks".
    """

    def __init__(self, tokenizer, words: Mapping[str, torch.Tensor]):
        self.inner, self.words = tokenizer, dict(words)
        longest_first = sorted((*self.words, MARKER), key=len, reverse=True)
        self.pattern = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in dict.fromkeys(longest_first)))

    def __getattr__(self, name: str):
        if name in ("inner", "words", "pattern"):  # not made yet while it is copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options) -> dict:
        """As the host's. Markers hold the places of vectors while the text is cut into tokens."""
        found = [match[0] for match in self.pattern.finditer(text)]
        if not any(word in self.words for word in found):
            return self.inner.tokenize_with_weights(text, return_word_ids, **options)
        marked = self.pattern.sub(lambda match: " ".join([MARKER] * len(self._vectors(match[0]))), text)
        cut = self.inner.tokenize_with_weights(marked, return_word_ids, **options)
        marker = next(iter(self.inner.tokenize_with_weights(MARKER).values()))[0][1][0]
        return {tower: self._replaced(chunks, marker, found) for tower, chunks in cut.items()}

    def _vectors(self, word: str) -> list[torch.Tensor | None]:
        """What stands in the places of a word; None for a marker that the text itself has."""
        return list(self.words[word]) if word in self.words else [None]

    def _replaced(self, chunks: list[list[tuple]], marker: int, found: list[str]) -> list[list[tuple]]:
        vectors = iter([vector for word in found for vector in self._vectors(word)])
        return [[self._entry(entry, marker, vectors) for entry in chunk] for chunk in chunks]

    @staticmethod
    def _entry(entry: tuple, marker: int, vectors: Iterator[torch.Tensor | None]) -> tuple:
        token, *others = entry
        vector = next(vectors, None) if isinstance(token, int) and token == marker else None
        return entry if vector is None else (vector, *others)


def with_new_words(clip: Any, words: Mapping[str, torch.Tensor]) -> Any:
    """A clone of ``clip`` that knows ``words``, each with vectors [V, D]; it keeps those that it knew before.

    Raises ValueError for models with several text encoders, and for vectors of another width than the model's words.
    """
    if not words:
        return clip
    tower = clip.cond_stage_model
    if not hasattr(tower, getattr(tower, "clip", None) or ""):
        raise ValueError("clip: this model has several text encoders, and learned words are for models with one (SD1.x, SD2.x)")
    width = getattr(tower, tower.clip).transformer.get_input_embeddings().weight.shape[1]
    for word, rows in words.items():
        if rows.shape[1] != width:
            raise ValueError(f"learned: the word {word!r} has vectors of {rows.shape[1]} numbers and this model's words have "
                             f"{width}; it was learned on another kind of model")
    clone, known = clip.clone(), {}
    if isinstance(clip.tokenizer, NewWords):
        known = clip.tokenizer.words
    clone.tokenizer = NewWords(getattr(clip.tokenizer, "inner", clip.tokenizer) if known else clip.tokenizer, {**known, **words})
    return clone
