"""The user's choices when ViCo is applied, and the trace that a run leaves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ..backbones.base import Site
from ..training.ranges import check
from ..uncopied import Bystander


@dataclass(frozen=True)
class LookSettings:
    """Strength of the image attention and its share of the schedule. Raises ValueError for values out of range."""

    strength: float = 1.0  # of the blocks' change; 1 is the paper, 0 the plain model
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check("strength", self.strength, 0, 2)
        check("start", self.start, 0, 1)
        check("end", self.end, 0, 1)
        if self.start > self.end:
            raise ValueError(f"start: {self.start} lies after end, {self.end}; the share of the schedule would be empty")


@dataclass(eq=False)
class LookTrace(Bystander):
    """The record of what a run looked at. A copy of it is itself."""

    masks: dict[float, dict[Site, torch.Tensor]] = field(default_factory=dict)  # sigma -> site -> [h, w] of the reference
    looks: int = 0  # sites of calls in which the reference was looked at
    off: bool = False  # strength is 0
    missing: str = ""  # what was not connected, so that nothing could be looked at
    skipped: list[str] = field(default_factory=list)
    owner: str = ""  # whose runs these are, among the records of all

    def clear(self) -> None:
        self.masks.clear()
        self.skipped.clear()
        self.looks = 0

    def finished(self) -> LookTrace:
        """The record of the run that has ended. The next run does not change it."""
        return replace(self, masks=dict(self.masks), skipped=list(self.skipped))

    def bytes(self) -> int:
        return sum(mask.numel() * mask.element_size() for sites in self.masks.values() for mask in sites.values())

    def why_nothing_seen(self) -> str:
        """Why the run did not look at the reference, or an empty string when it did."""
        if self.missing:
            return self.missing
        if self.off:
            return "strength is 0"
        if self.looks:
            return ""
        return "; ".join(self.skipped) or ("no step lies between start and end, or the model of ViCo Apply (DreamMatcher) was "
                                           "not sampled")
