"""The user's choices for matching, and the trace that a run leaves for the preview."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..subject import Subject
from ..uncopied import Bystander, Uncopied
from .descriptors import PAPER_PCA


@dataclass(frozen=True, eq=False)
class MaskSettings(Uncopied):
    """The place of the subject, and the strictness with which a match is trusted."""

    reference_subject: Subject | None = None
    target_subject: Subject | None = None
    reference_mask: torch.Tensor | None = None  # [1, 1, H, W] in 0..1, for the reference's map; limits the match, or is carried
    target_mask: torch.Tensor | None = None  # [B, 1, H, W] in 0..1, replaces the target's map
    threshold: float = 0.4  # lambda_c of Eq. 8
    otsu: bool = True  # binary instead of the paper's soft foreground
    carried: bool = False  # the foreground lies where the match lies on the reference's, instead of where the prompt's words look

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 10:
            raise ValueError(f"cycle_threshold: {self.threshold} is outside 0..10; the paper uses 0.4")
        carried_alone = self.carried and self.reference_mask is not None
        if self.target_subject is None and self.target_mask is None and not carried_alone:
            raise ValueError("target: nothing says where the subject is; connect the target's DM_SUBJECT or a MASK")
        for name, mask in (("reference", self.reference_mask), ("target", self.target_mask)):
            if mask is not None and not bool((mask > 0.5).any()):
                raise ValueError(f"{name} MASK: it is empty, so there would be nothing to match; paint the subject white")


def check_span(start: float, end: float) -> None:
    """Raises ValueError when two shares of the sampling schedule are no span."""
    if not 0 <= start <= 1 or not 0 <= end <= 1:
        raise ValueError(f"start and end: {start} and {end} must lie in 0..1")
    if start >= end:
        raise ValueError(f"start: {start} is not before end: {end}, so nothing would be done")


@dataclass(frozen=True)
class MatchSettings:
    """Settings of one match: the work that goes into it, and the distance that its way back may always miss."""

    pca: int | None = None  # joint principal directions per scale (the paper: 256); None keeps the centred features
    shared: bool = True  # one reference pass and one match for both rows of the guidance pair, and for matching guidance
    every: int = 1  # evaluations of the model from one match to the next
    least_slack: float = 1.5  # cells that a match may always miss: it goes from cell to cell and can be no finer
    sharpness: float = 0.0  # how much longer the queries of the subject's cells are: they mix fewer of the others' colours
    apart: bool = False  # transformers: the other cells and the prompt see the picture's own values, by a second attention

    def __post_init__(self) -> None:
        if self.pca is not None and self.pca < 1:
            raise ValueError(f"pca: {self.pca} is not a positive rank; use None for no projection")
        if self.every < 1:
            raise ValueError(f"every: {self.every} is not at least 1")
        if not self.least_slack >= 0:
            raise ValueError(f"least_slack: {self.least_slack} is not at least 0")
        if not 0 <= self.sharpness <= 4:
            raise ValueError(f"sharpness: {self.sharpness} is outside 0..4; 0 is the model's own attention")


BEST, BALANCED = "best", "balanced"
#: choices that trade likeness for time; the figures of docs/measured.md are their reason
PRESETS = {BEST: MatchSettings(sharpness=0.5, apart=True), BALANCED: MatchSettings(), "fast": MatchSettings(every=2),
           "paper": MatchSettings(pca=PAPER_PCA, shared=False, least_slack=0.0)}
#: share of the schedule after which new nodes match: the plain model finds the layout first. The paper begins at 0.08
BEST_START = 0.2


def match_settings_of(preset: str) -> MatchSettings:
    """The settings of a preset. Raises ValueError for an unknown name."""
    if preset not in PRESETS:
        raise ValueError(f"preset: {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


#: how values are injected: the method itself, and the two ablations of the paper's Table 5
MATCHED, MATCHED_EVERYWHERE, REPLACED = "matched", "matched everywhere", "keys and values replaced"


@dataclass(frozen=True)
class ApplySettings:
    """Settings of appearance matching: its strength, its share of the schedule, and its layers."""

    strength: float = 1.0
    start: float = 0.08  # share of the sampling schedule, 0..1
    end: float = 1.0
    injection: str = MATCHED
    match: MatchSettings = PRESETS[BALANCED]

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength: {self.strength} is outside 0..1")
        check_span(self.start, self.end)
        if self.injection not in (MATCHED, MATCHED_EVERYWHERE, REPLACED):
            raise ValueError(f"injection: {self.injection!r} is unknown")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The match of one step at the finest injected grid."""

    sigma: float
    target_mask: torch.Tensor  # [B, 1, H, W]
    reference_mask: torch.Tensor | None  # [1, 1, h, w]
    confidence: torch.Tensor  # [B, 1, H, W]
    flow: torch.Tensor  # [B, 2, H, W], into the first reference
    similarity: torch.Tensor  # [B, 1, H, W], cosine of the matched descriptors
    reference_size: tuple[int, int]
    others: tuple[tuple[torch.Tensor, tuple[int, int]], ...] = ()  # flow and size of each further reference
    best: torch.Tensor | None = None  # int64 [B, 1, H, W], which reference each position matches; None with only one

    def to(self, device: torch.device | str) -> Snapshot:
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved, others=tuple((flow.to(device), size) for flow, size in self.others))

    def bytes(self) -> int:
        tensors = [value for value in vars(self).values() if torch.is_tensor(value)] + [flow for flow, _ in self.others]
        return sum(value.numel() * value.element_size() for value in tensors)


@dataclass(eq=False)
class Trace(Bystander):
    """The record of the last run; filled while sampling, read by the preview. A copy of it is itself."""

    snapshots: dict[float, Snapshot] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    off: bool = False  # strength is 0
    missing: str = ""  # what was not connected, so that nothing could be matched
    noise_levels: int = 0  # visited between start and end
    layers: int = 0  # of all calls together, that took over something of the reference
    owner: str = ""  # whose runs these are, among the records of all

    def clear(self) -> None:
        self.snapshots.clear()
        self.skipped.clear()
        self.off, self.noise_levels, self.layers = False, 0, 0

    def finished(self) -> Trace:
        """The record of the run that has ended, in main memory. The next run does not change it."""
        snapshots = {sigma: snapshot.to("cpu") for sigma, snapshot in self.snapshots.items()}
        return replace(self, snapshots=snapshots, skipped=list(self.skipped))

    def bytes(self) -> int:
        return sum(snapshot.bytes() for snapshot in self.snapshots.values())

    def last(self) -> Snapshot | None:
        return self.snapshots[min(self.snapshots)] if self.snapshots else None

    def why_nothing_matched(self) -> str:
        """Why the run took nothing of the reference, or an empty string when it did."""
        if self.missing:
            return self.missing
        if self.off:
            return "strength is 0"
        if self.layers:
            trusted = (bool((snapshot.target_mask * snapshot.confidence).any()) for snapshot in self.snapshots.values())
            return "" if not self.snapshots or any(trusted) else (
                "no match was trusted; choose a reference in which the subject is larger, or a higher cycle_threshold")
        if self.noise_levels == 0:
            return "no step lies between start and end, or the model of Apply (DreamMatcher) was not sampled"
        if self.skipped:
            return "; ".join(self.skipped)
        if self.noise_levels == 1:
            return "only one step lies between start and end, and matching needs the step before; use more steps"
        return "the subject's place in the new picture was not found"
