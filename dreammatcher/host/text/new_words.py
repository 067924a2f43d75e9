"""A CLIP that knows learned words: in its prompts, each word stands for its learned vectors."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch

from ...texts import alone
from .towers import towers_of, width_of

log = logging.getLogger(__name__)

#: holds the places of a word's vectors while a text is cut into tokens; a token of its own in CLIP's vocabulary and in Toybox's
MARKER = "sks"
#: what is no word of a prompt, and the marker in every form that becomes its token
FILE, MARKED = r"embedding:\S+", rf"(?<![^\W\d_]){MARKER}(?![^\W\d_])"


class NewWords:
    """A host's tokenizer around which learned words become their vectors. Everything else of it is as it was.

    ``words``: word -> vectors [V, D], of which each text encoder reads its ``columns``. A word is found where it stands alone, in
    capitals or not, as in every prompt.
    """

    def __init__(self, tokenizer: Any, words: Mapping[str, torch.Tensor], columns: Mapping[str, slice]):
        self.inner, self.words, self.columns = tokenizer, {word.lower(): rows for word, rows in words.items()}, dict(columns)
        word_patterns = [alone(word) for word in sorted(self.words, key=len, reverse=True)]
        self.pattern = re.compile("|".join([FILE, *word_patterns, MARKED]), re.IGNORECASE)

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "words", "columns", "pattern"):  # not made yet while it is copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def clone(self) -> NewWords:
        """Older hosts clone the tokenizer with the CLIP."""
        return NewWords(self.inner.clone(), self.words, self.columns)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> dict:
        """Tokenizes as the host does, with vectors in the places of learned words."""
        matched = [match[0].lower() for match in self.pattern.finditer(text)]
        if not any(word in self.words for word in matched):
            return self.inner.tokenize_with_weights(text, return_word_ids, **options)
        marked = self.pattern.sub(lambda match: self._marked(match[0]), text)
        cut = self.inner.tokenize_with_weights(marked, return_word_ids, **options)
        markers = {tower: chunks[0][1][0] for tower, chunks in self.inner.tokenize_with_weights(MARKER).items()}
        vectors = [vector for word in matched for vector in self._vectors(word)]
        return {tower: self._replaced(chunks, markers[tower], [None if one is None else one[self.columns[tower]]
                                                               for one in vectors]) for tower, chunks in cut.items()}

    def _marked(self, part: str) -> str:
        rows = self.words.get(part.lower())
        return part if rows is None else " ".join([MARKER] * len(rows))

    def _vectors(self, word: str) -> list[torch.Tensor | None]:
        """The vectors that stand for a part of the text; None for a marker that the text itself contains."""
        if word in self.words:
            return list(self.words[word])
        return [None] if word == MARKER else []

    @staticmethod
    def _replaced(chunks: list[list[tuple]], marker: int, vectors: list[torch.Tensor | None]) -> list[list[tuple]]:
        places = [(row, column) for row, chunk in enumerate(chunks) for column, entry in enumerate(chunk)
                  if isinstance(entry[0], int) and entry[0] == marker]
        if len(places) != len(vectors):
            log.warning("DreamMatcher: %d places for %d vectors of learned words in a prompt; write %r apart from other letters",
                        len(places), len(vectors), MARKER)
        replaced = [list(chunk) for chunk in chunks]
        for (row, column), vector in zip(places, vectors):
            if vector is not None:
                replaced[row][column] = (vector, *chunks[row][column][1:])
        return replaced


def with_new_words(clip: Any, words: Mapping[str, torch.Tensor]) -> Any:
    """A clone of ``clip`` that knows ``words``, each with vectors [V, D]; it keeps those that it knew before.

    Raises ValueError for models with other text encoders than CLIP's, and for vectors of another width than the model's words.
    """
    if not words:
        return clip
    towers = towers_of(clip)
    for word, rows in words.items():
        if rows.shape[1] != width_of(towers):
            raise ValueError(f"learned: the word {word!r} has vectors of {rows.shape[1]} numbers and this model's words have "
                             f"{width_of(towers)}; it was learned on another kind of model")
    clone, tokenizer = clip.clone(), clip.tokenizer
    inner = tokenizer.inner if isinstance(tokenizer, NewWords) else tokenizer
    clone.tokenizer = NewWords(inner, {**known_words(clip), **words}, {tower.name: tower.columns for tower in towers})
    return clone


def known_words(clip: Any) -> dict[str, torch.Tensor]:
    """Learned words that ``clip`` knows, with their vectors."""
    return clip.tokenizer.words if isinstance(clip.tokenizer, NewWords) else {}


def without_marker(clip: Any) -> Any:
    """``clip``, or a clone for which :data:`MARKER` is no learned word: training needs it for places of its own."""
    known = known_words(clip)
    if MARKER not in known:
        return clip
    clone = clip.clone()
    clone.tokenizer = NewWords(clip.tokenizer.inner, {word: rows for word, rows in known.items() if word != MARKER},
                               clip.tokenizer.columns)
    return clone


def with_markers(text: str, words: Mapping[str, int]) -> tuple[str, list[str]]:
    """``text`` with a marker for each vector of its ``words`` (word -> their number) in its place, and its words in order."""
    pattern = "|".join(map(alone, words))
    if not pattern:
        return text, []
    return re.sub(pattern, lambda match: " ".join([MARKER] * words[match[0]]), text), re.findall(pattern, text)
