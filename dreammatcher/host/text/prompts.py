"""The positive prompts of a run, as the host's conditioning entries tell them.

A run with one positive prompt needs none of this. With several (regions, schedules, combined prompts) a method serves those
that name its subject: they carry the mark that Subject (DreamMatcher) leaves in a CONDITIONING.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

import torch

from ...subject import READ, Subject, text_read
from .conditioning import SUBJECT_KEY, TEXTS_KEY

DIFFERENT = "the pictures of a batch have prompts of their own, in which the subject {words!r} stands at different places"


@dataclass(frozen=True, eq=False)
class Encoded:
    """One conditioning entry as it is sampled, before the host repeats it to the length of others."""

    text: torch.Tensor | None  # [B, T, C], in which words stand; None where the host does not tell
    mark: Subject | None = None  # the subject that it carries
    texts: object = None  # that stand in for it at some noise levels

    def place(self, subject: Subject) -> tuple[Subject | None, str]:
        """``subject`` at its place in this text, None where that is unknown, and a remark for the user.

        Where the entry was encoded for the same subject, what it carries counts first: a schedule encodes a prompt anew for each
        of its spans.
        """
        if self.text is None:
            return subject, ""
        candidates = [(subject, False)]
        if self.mark is not None and self.mark.is_about(subject):
            carried = self.mark.limited({word for word, _ in subject.choices})
            candidates = [(carried, True), (subject, carried.prompt == subject.prompt)]
        places = [_located(self.text, *candidate) for candidate in candidates]
        sure = (place for place in places if place[0] is not None and not place[1])
        return next(sure, next((place for place in places if place[0] is not None), places[0]))


def _located(texts: torch.Tensor, subject: Subject, marked: bool) -> tuple[Subject | None, str]:
    places = [subject.located(text, marked) for text in texts]
    if any(place != places[0] for place in places[1:]):
        return None, DIFFERENT.format(words=subject.words)
    return places[0]


@dataclass(frozen=True)
class Prompt:
    """One positive prompt of a run. One that a schedule encodes anew for each of its spans is still one prompt."""

    names: tuple[Hashable, ...]  # of its conditioning entries, one for each span
    subject: Subject | None
    area: tuple | None  # of the picture, to which it is limited
    masked: bool
    spans: tuple[tuple[float, float], ...]  # noise levels from and to
    encoded: Mapping[Hashable, Encoded] = field(default_factory=dict, compare=False)  # by name

    @staticmethod
    def of(entry: dict, name: Hashable) -> Prompt:
        """The prompt of one conditioning entry, which calls of the UNet will refer to by ``name``."""
        span = float(entry.get("timestep_start", math.inf)), float(entry.get("timestep_end", 0.0))
        mark, text = entry.get(SUBJECT_KEY), entry.get("cross_attn")
        known = text if torch.is_tensor(text) and text.ndim == 3 else None
        if known is not None and entry.get(READ) is not None:
            known = text_read(known[0], entry)[None]
        return Prompt((name,), mark, entry.get("area"), entry.get("mask") is not None, (span,),
                      {name: Encoded(known, mark, entry.get(TEXTS_KEY))})

    def follows(self, other: Prompt) -> bool:
        """True if both are the same prompt of a subject, encoded for different spans of the schedule."""
        return (self.subject is not None and self.subject == other.subject and self.area == other.area
                and not self.masked and not other.masked
                and all(mine[0] <= theirs[1] or theirs[0] <= mine[1] for mine in self.spans for theirs in other.spans))

    def is_about(self, subject: Subject | None) -> bool:
        """True if this prompt names the subject itself."""
        return self.subject is not None and subject is not None and self.subject.is_about(subject)


def joined(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts, with those that are one prompt at different times made one."""
    distinct: list[Prompt] = []
    for prompt in prompts:
        number = next((number for number, earlier in enumerate(distinct) if prompt.follows(earlier)), None)
        if number is None:
            distinct.append(prompt)
        else:
            earlier = distinct[number]
            distinct[number] = replace(earlier, names=earlier.names + prompt.names, spans=earlier.spans + prompt.spans,
                                       encoded={**earlier.encoded, **prompt.encoded})
    return distinct
