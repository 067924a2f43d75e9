"""The part of a sampling run that every method keeps: its noise levels and evaluations, its rows, and what it has said.

A sampler evaluates the model as often as it likes, and an evaluation may take several UNet calls. The host says when an
evaluation begins (:mod:`.wrappers`) or, on older hosts, when it is over (:mod:`.mid_2024`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...guidance_rows import COND
from ...subject import Subject
from ..graph.notes import tell
from .rows import Assignment, RowBook

log = logging.getLogger(__name__)


def noise_level(given: torch.Tensor) -> float:
    """Sigma of a call, from the host's tensor of one per picture. This waits for the device."""
    return float(given.flatten()[0])


class NoiseSchedule(Protocol):
    """The host's noise schedule, its ``model_sampling``, as far as a session asks it."""

    def percent_to_sigma(self, percent: float) -> float:
        """The noise level at a share 0..1 of the schedule."""

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """The timestep at a noise level, which need not be a whole number."""


def _sigmas(sampling: NoiseSchedule, start: float, end: float) -> tuple[float, float]:
    return float(sampling.percent_to_sigma(start)), float(sampling.percent_to_sigma(end))


@dataclass(eq=False)
class Clock:
    """Noise levels and evaluations: where the run is, and which sigmas the user's shares of the schedule are."""

    sampling: NoiseSchedule
    start: float  # sigma from which, and
    end: float  # to which, the method is at work
    sigma: float | None = None  # of the last call
    noise_levels_visited: int = 0
    evaluations_begun: int = 0  # of the model, the one in progress included
    evaluation_ended: bool = False  # the last evaluation has come to its end
    announced: bool = False  # the host says when an evaluation begins
    _given: torch.Tensor | None = None  # the host's tensor that sigma was read from
    _spans: dict[tuple[float, float], tuple[float, float]] = field(default_factory=dict)

    @property
    def current(self) -> float:
        """Sigma of the last call. Raises RuntimeError before the first one."""
        if self.sigma is None:
            raise RuntimeError("no call of the model has begun yet")
        return self.sigma

    @classmethod
    def between(cls, sampling: NoiseSchedule, start: float, end: float) -> Clock:
        """The clock of a method that is at work between two shares of the schedule."""
        return cls(sampling, *_sigmas(sampling, start, end))

    def in_range(self, sigma: float) -> bool:
        return self.end <= sigma <= self.start

    def within(self, sigma: float, start: float, end: float) -> bool:
        """True if ``sigma`` lies between two shares of the schedule."""
        if (start, end) not in self._spans:
            self._spans[start, end] = _sigmas(self.sampling, start, end)
        first, last = self._spans[start, end]
        return last <= sigma <= first

    def arrive(self, sigma: float, given: torch.Tensor) -> bool:
        """Takes note of a call's sigma, read from the host's ``given``. True if it is another than the last call's."""
        self._given = given
        if sigma == self.sigma:
            return False
        self.sigma, self.noise_levels_visited = sigma, self.noise_levels_visited + 1
        return True

    def read(self, given: torch.Tensor) -> float:
        """The noise level in ``given``, without another look at the device where the last call had the same tensor."""
        return self.current if given is self._given else noise_level(given)

    def evaluate(self) -> None:
        """An evaluation of the model begins."""
        self.evaluations_begun, self.evaluation_ended = self.evaluations_begun + 1, False


@dataclass(eq=False)
class CallWatch:
    """Keeps watch over calls: which of a method's patches run, and on what picture (:mod:`.model_calls`)."""

    expected: frozenset = frozenset()  # what runs in every call: patches by name, and layers
    heard: set = field(default_factory=set)  # of those, what ran in the current call
    forwards: int = 0  # of the UNet, with the method's patches
    stale: bool = False  # a graph was used that had been compiled without the patches
    changed: bool = False  # another pack changes the picture in front of the UNet

    def complete(self) -> bool:
        return self.heard >= self.expected


@dataclass(eq=False)
class Session:
    """One run of a method while a model samples."""

    base: Any  # the host's BaseModel that samples: the one patched, or another with the same weights
    clock: Clock
    rows: RowBook
    calls: CallWatch
    skipped: list[str]  # what was left out, and why
    conclude: Callable[[], None]  # called when the run has come to its end
    said: list[str] = field(default_factory=list)
    subjects: dict[Hashable, Subject | None] = field(default_factory=dict)  # by entry of a prompt, where they stand in it

    def place(self, name: Hashable, subject: Subject) -> Subject | None:
        """``subject`` where it stands in a prompt's entry as it is sampled; None, which is said, where nothing tells."""
        if name not in self.subjects:
            place, remark = self.rows.encoded(name).place(subject)
            if place is None:
                self.skip(remark)
            elif remark and remark not in self.skipped:
                self.skipped.append(remark)
                tell(remark)
            elif place.tokens != subject.tokens:
                self.note(f"the prompt of the subject {subject.words!r} is joined with other tokens; its words count in its "
                          "own text only")
            self.subjects[name] = place
        return self.subjects[name]

    def note(self, text: str) -> None:
        """Says something once per session."""
        if text not in self.said:
            self.said.append(text)
            log.info("DreamMatcher: %s", text)

    def skip(self, reason: str) -> None:
        """Says once per session why something was left out."""
        if reason not in self.skipped:
            self.skipped.append(reason)
            log.warning("DreamMatcher: %s", reason)

    def begin_evaluation(self) -> None:
        self.clock.evaluate()
        self.rows.inputs.clear()

    def announce_evaluation(self) -> None:
        """The host says that an evaluation begins: from now on it always does."""
        self.clock.announced = True
        self.begin_evaluation()

    def arrive(self, sigma: float, given: torch.Tensor, names: Sequence[Hashable | None],
               inputs: Sequence[torch.Tensor]) -> Assignment:
        """A call begins at ``sigma``, read from the host's ``given``: the rows of its chunks, as :meth:`RowBook.assign`."""
        if not self.clock.announced and self._is_new(sigma, names, inputs):
            self.begin_evaluation()
        self.clock.arrive(sigma, given)
        assignment = self.rows.assign(names, inputs)
        if assignment.remark:
            self.skip(assignment.remark)
        return assignment

    def _is_new(self, sigma: float, names: Sequence[Hashable | None], inputs: Sequence[torch.Tensor]) -> bool:
        """True if a call begins an evaluation, on a host that does not say so.

        Such a call is at another noise level, or comes after the end of the last evaluation and shows a positive prompt another
        picture. Packs call again after that end, with the same picture (PAG) or for a negative prompt alone (SAG).
        """
        if self.clock.evaluations_begun == 0 or sigma != self.clock.sigma:
            return True
        if not self.clock.evaluation_ended:
            return False
        numbers = self.rows.numbers()
        return any(name in numbers and (before := self.rows.inputs.get((COND, numbers[name]))) is not None
                   and not torch.equal(before, seen) for name, seen in zip(names, inputs))
