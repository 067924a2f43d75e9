"""Appearance matching inside an edit model, whose references stand in its sequence. Not in the paper.

The picture's tokens and those of every reference go through the same blocks together, so one block says which of them belong
together (Eq. 5 and 8), and in blocks behind it, where that is trusted, each place attends more to its match, or takes the match's
values (Eq. 7). There is nothing to invert, no pass over the reference and nothing to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import rearrange

from ..backbones.base import Grid, Site, sites_in
from ..backbones.dit import DiTBackbone
from ..uncopied import Bystander, Uncopied
from .appearance import match_appearance
from .correspondence import JointMatch, match
from .foreground import carried_over, painted_cells
from .settings import check_span

#: what a lock does with a match: see LockSettings
ATTENTION, VALUES = "attention", "values"
#: how much more a place attends to its match, at full strength
FACTOR = 55.0
#: scores of attention that are held at a time
SCORES_AT_ONCE = 2**26
#: cells that the way there and back may always miss: it goes from cell to cell and can be no finer
LEAST_SLACK = 1.5
NO_PICTURE = ("the model got no reference picture: connect ReferenceLatent, or a text encoder for edit models with its vae and a "
              "picture, to the sampler's positive prompt")
TOO_FEW = "reference: picture {chosen} is asked for, and the model got {count}; choose a lower number, or 0 for all"
UNSAMPLED = "no step lies between start and end, or the model of Lock (DreamMatcher) was not sampled"
UNTRUSTED = ("no match was trusted; lower similarity, raise cycle_threshold, or choose a reference that shows more of what the "
             "new picture shows")


@dataclass(frozen=True)
class LockSettings:
    """Settings of a lock: its strength, its share of the schedule, and the strictness with which a match is trusted."""

    strength: float = 1.0
    start: float = 0.08  # share of the sampling schedule, 0..1
    end: float = 1.0
    reference: int = 0  # number of the picture in the sequence, from 1 on; 0 for all
    similarity: float = 0.2  # least cosine of a match
    threshold: float = 0.1  # how far the way there and back may miss, as a share of the picture's side
    #: ATTENTION: a place attends more to its match; VALUES: it takes the match's values
    way: str = VALUES

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength: {self.strength} is outside 0..1")
        check_span(self.start, self.end)
        if self.way not in (ATTENTION, VALUES):
            raise ValueError(f"way: {self.way!r} is none of {ATTENTION}, {VALUES}")
        if self.reference < 0:
            raise ValueError(f"reference: {self.reference} is not at least 0; 1 is the first picture, 0 all of them")
        if not -1 <= self.similarity <= 1:
            raise ValueError(f"similarity: {self.similarity} is outside -1..1")
        if not 0 < self.threshold <= 10:
            raise ValueError(f"cycle_threshold: {self.threshold} is outside 0..10")

    def chosen(self, count: int) -> tuple[int, ...]:
        """Numbers, from 0 on, of those of ``count`` pictures that are matched; none where there are too few."""
        wanted = range(count) if self.reference == 0 else (self.reference - 1,)
        return tuple(number for number in wanted if number < count)


@dataclass(eq=False)
class LockTrace(Bystander):
    """The record of the last run. A copy of it is itself."""

    skipped: list[str] = field(default_factory=list)
    off: bool = False  # strength is 0
    layers: int = 0  # of all calls together, that took values of a reference
    share: torch.Tensor | None = None  # the largest share of the picture that was trusted in a call, 0..1, a single number

    def clear(self) -> None:
        self.skipped.clear()
        self.off, self.layers, self.share = False, 0, None

    def take(self, share: torch.Tensor) -> None:
        """Takes note of the share of a call, without a wait for the device."""
        self.share = share if self.share is None else torch.maximum(self.share, share)

    def why_nothing_locked(self) -> str:
        """Why the run took nothing of a reference, or an empty string when it did."""
        if self.off:
            return "strength is 0"
        if self.layers:
            return "" if self.share is None or float(self.share) > 0 else UNTRUSTED
        return "; ".join(self.skipped) or UNSAMPLED


@dataclass(frozen=True, eq=False)
class LockPlan(Uncopied):
    """One Lock (DreamMatcher)."""

    backbone: DiTBackbone
    settings: LockSettings
    masks: torch.Tensor | None  # [R, 1, H, W], white where the subject is, of the references that are matched, in their order
    trace: LockTrace
    node: str = ""  # its number in the graph, where the host tells
    names: str = ""  # numbers of the blocks that are locked, with commas; empty are those of the way that is chosen

    @property
    def tap(self) -> int:
        """The number of the block whose values are matched."""
        return self.backbone.taps[-1]

    @cached_property
    def layers(self) -> tuple[Site, ...]:
        """Sites that are locked: by attention the last quarter, by values all from the one that is matched on, or those named."""
        behind = tuple(site for site in self.backbone.matched if site[1] >= self.tap)
        last = tuple(site for site in self.backbone.chosen("") if site in behind)
        return sites_in(self.names, behind, "blocks that can be locked", own=last if self.settings.way == ATTENTION else behind)

    @cached_property
    def heard(self) -> frozenset[Site]:
        """Sites that a run has to pass: the one that is matched and those that are locked."""
        return frozenset((*self.layers, *(site for site in self.backbone.matched if site[1] == self.tap)))

    def content_identity(self) -> tuple:
        """Everything that the plan changes in a model's results."""
        return self.layers, self.settings, self.masks


@dataclass(frozen=True, eq=False)
class Lock:
    """A match to the references, and how much of it is taken."""

    indices: torch.Tensor  # int64 [B, N], positions in the tokens of the references that are matched, laid end to end
    weight: torch.Tensor  # [B, 1, H, W], the share of the value that comes from there


def foregrounds_at(masks: torch.Tensor, grids: Sequence[Grid]) -> list[torch.Tensor]:
    """The foreground [1, 1, H, W] of each reference at its grid by ``masks`` [R, 1, H, W]; without a mask all of it."""
    return [painted_cells(masks[number:number + 1], size) if number < len(masks) else masks.new_ones(1, 1, *size)
            for number, size in enumerate(grids)]


def described(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Values [B, N, C] as unit vectors [B, C, H, W] about the mean of their own picture.

    References may be modulated for another noise level than the picture, and a tint of the whole picture must not count.
    """
    centred = tokens.float() - tokens.float().mean(1, keepdim=True)
    return rearrange(F.normalize(centred, dim=-1), "b (h w) c -> b c h w", h=grid[0])


def found(value: torch.Tensor, grid: Grid, others: Sequence[torch.Tensor], grids: Sequence[Grid],
          foregrounds: Sequence[torch.Tensor] | None, settings: LockSettings) -> Lock:
    """The match of a picture's values [B, N, C] with those of the references [B, M, C], in both directions.

    ``foregrounds`` [1, 1, H, W] are those of the references at their ``grids``, 0 or 1: a cell whose match lies outside is left
    alone. None: all of them is foreground.
    """
    half = value.is_cuda and value.element_size() == 2  # bfloat16 would be too coarse for cosines
    target = described(value, grid)
    joint = JointMatch.of([match(described(other, size), target, unit=True, dtype=torch.float16 if half else torch.float32)
                           for other, size in zip(others, grids)])
    similarity = joint.pick([each.similarity for each in joint.matches])
    whole = torch.ones_like(similarity)
    trusted = joint.confidence(whole, settings.threshold, LEAST_SLACK) * (similarity >= settings.similarity)
    if foregrounds is not None:
        trusted = trusted * carried_over(list(foregrounds), joint)
    return Lock(joint.indices, trusted * settings.strength)


def locked(value: torch.Tensor, others: Sequence[torch.Tensor], lock: Lock) -> torch.Tensor:
    """V' = (1 - M U) V + M U V_ref[match] (Eq. 7): values [B, N, C] with those of the references [B, M, C] blended in."""
    reference = others[0] if len(others) == 1 else torch.cat(list(others), 1)
    return match_appearance(value, reference, lock.indices, lock.weight)


def raised(output: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor,
           factor: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The output of softmax attention [B, H, N, D] as it is when each query's weight of one key is multiplied.

    ``query`` [B, H, N, D], ``key`` and ``value`` [B, H, L, D]; ``positions`` [B, N] are the places of those keys, ``factor``
    [B, N] is by how much. A weight of p becomes f p / (1 + (f - 1) p), and all others shrink alike. ``mask`` is added to the
    scores and can be broadcast to [B, H, N, L].
    """
    depth = query.shape[-1]
    places = positions[:, None, :, None].expand(-1, query.shape[1], -1, 1)
    at_once = max(1, SCORES_AT_ONCE // (query.shape[0] * query.shape[1] * key.shape[2]))
    parts = []
    for first in range(0, query.shape[2], at_once):
        rows = slice(first, first + at_once)
        scores = (query[:, :, rows] @ key.transpose(-1, -2)).float() * depth ** -0.5
        if mask is not None:
            scores = scores + (mask if mask.shape[-2] == 1 else mask[..., rows, :])
        parts.append((scores.gather(3, places[:, :, rows]) - scores.logsumexp(3, keepdim=True)).exp())
    more = torch.cat(parts, 2) * (factor[:, None, :, None] - 1)
    return torch.lerp(output, value.gather(2, places.expand(-1, -1, -1, depth)), (more / (1 + more)).to(output.dtype))
