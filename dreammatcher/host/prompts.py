"""The positive prompts of a run, as the host's conditioning entries tell them.

A run with one positive prompt needs none of this. With several (regions, schedules, combined prompts) a method serves those
that name its subject: they carry the mark that DreamMatcher Subject leaves in a CONDITIONING.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from ..subject import Subject
from .conditioning import SUBJECT_KEY, TEXTS_KEY


@dataclass(frozen=True)
class Prompt:
    """One positive prompt of a run. One that a schedule encodes anew for each of its spans is still one prompt."""

    names: tuple[Hashable, ...]  # of its conditioning entries, one for each span
    subject: Subject | None
    area: tuple | None  # of the picture, to which it is limited
    masked: bool
    spans: tuple[tuple[float, float], ...]  # noise levels from and to
    texts: object = field(default=None, compare=False)  # that stand in for it at some noise levels

    @staticmethod
    def of(entry: dict, name: Hashable) -> Prompt:
        """The prompt of one conditioning entry, which calls of the UNet will refer to by ``name``."""
        span = float(entry.get("timestep_start", math.inf)), float(entry.get("timestep_end", 0.0))
        return Prompt((name,), entry.get(SUBJECT_KEY), entry.get("area"), entry.get("mask") is not None, (span,),
                      entry.get(TEXTS_KEY))

    def follows(self, other: Prompt) -> bool:
        """Whether both are one prompt of a subject, encoded for different spans of the schedule."""
        return (self.subject is not None and self.subject == other.subject and self.area == other.area
                and not self.masked and not other.masked
                and all(mine[0] <= theirs[1] or theirs[0] <= mine[1] for mine in self.spans for theirs in other.spans))

    def is_about(self, subject: Subject | None) -> bool:
        """Whether this prompt names the subject itself."""
        return self.subject is not None and subject is not None and self.subject.words == subject.words


def joined(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts, with those that are one prompt at different times made one."""
    distinct: list[Prompt] = []
    for prompt in prompts:
        number = next((number for number, earlier in enumerate(distinct) if prompt.follows(earlier)), None)
        if number is None:
            distinct.append(prompt)
        else:
            earlier = distinct[number]
            distinct[number] = replace(earlier, names=earlier.names + prompt.names, spans=earlier.spans + prompt.spans)
    return distinct
