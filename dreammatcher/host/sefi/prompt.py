"""Prompts with SeFi-IDE's words: a text for each span of timesteps, for keys and for values, that go with the CONDITIONING."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...sefi.learned import SeFi
from ...sefi.stages import TIMESTEPS, spans, stage_of
from ...subject import Subject
from ...texts import holds
from ...uncopied import Uncopied
from ..graph.notes import not_connected, tell
from ..text.conditioning import SUBJECT_KEY, TEXTS_KEY, encode, encode_subject, subject_of
from ..text.new_words import with_new_words


@dataclass(frozen=True, eq=False)
class StagedText(Uncopied):
    """A prompt's text at every timestep. A copy of it is itself."""

    words: tuple[str, ...]  # the learned ones
    ends: tuple[int, ...]  # last timestep of each span, ascending
    keys: tuple[torch.Tensor, ...]  # [1, T, D] of each span
    values: tuple[torch.Tensor, ...]
    plain: torch.Tensor  # [1, T, D], what the CONDITIONING itself says

    def at(self, timestep: float) -> int:
        """Number of the span of a timestep, which need not be whole; one outside of 0..999 belongs to the nearest."""
        whole = min(max(round(timestep), 0), self.ends[-1])
        return next(number for number, end in enumerate(self.ends) if whole <= end)


def staged_or_plain(clip, prompt: str, subjects: Sequence[SeFi]) -> tuple[list, Subject]:
    """:func:`staged_prompt`; without a subject the prompt as the host encodes it, with a note."""
    if subjects:
        return staged_prompt(clip, prompt, subjects)
    source = "SeFi Train (DreamMatcher) or SeFi Load (DreamMatcher)"
    not_connected("sefi", source, "the prompt is encoded as it is, and no learned word is known in it")
    return encode_subject(clip, prompt, subject_of(clip, prompt, "", tell))


def staged_prompt(clip, prompt: str, subjects: Sequence[SeFi]) -> tuple[list, Subject]:
    """CONDITIONING of a prompt that holds the words of ``subjects``, and the place of the first of them.

    By itself, and without SeFi Apply (DreamMatcher), it says what the middle stage's keys say. Raises ValueError for a subject
    without its word in the prompt, for two of one word, and for vectors of another width than the model's words.
    """
    words = tuple(subject.word for subject in subjects)
    missing = [word for word in words if not holds(prompt, word)]
    if missing:
        raise ValueError(f"prompt: {prompt!r} does not hold the word {missing[0]!r} of a SeFi-IDE subject; write it where the "
                         "subject is to be")
    if len(set(words)) < len(words):
        raise ValueError(f"sefi: two subjects have the word {max(words, key=words.count)!r}; train one of them with another "
                         "identifier")
    parts = spans(tuple(len(subject.keys) for subject in subjects))
    keys: list[list] = []
    values: list[list] = []
    for start, _ in parts:
        for texts, which in ((keys, 0), (values, 1)):
            vectors = {one.word: one.at(stage_of(start, len(one.keys)))[which] for one in subjects}
            texts.append(encode(with_new_words(clip, vectors), prompt))
    middle = next(number for number, (_, end) in enumerate(parts) if end >= TIMESTEPS // 2)
    knows = with_new_words(clip, {one.word: one.at(len(one.keys) // 2)[0] for one in subjects})
    subject = subject_of(knows, prompt, words[0], tell)
    entries = []
    for entry, (tensor, options) in enumerate(keys[middle]):
        staged = StagedText(words, tuple(end for _, end in parts), tuple(text[entry][0] for text in keys),
                            tuple(text[entry][0] for text in values), tensor)
        entries.append([tensor, {**options, TEXTS_KEY: staged, SUBJECT_KEY: subject.encoded_as(tensor[0])}])
    return entries, entries[0][1][SUBJECT_KEY]
