"""State of one sampling run: from its start to its end, whatever the number of UNet calls.

A sampler calls the UNet as often as it likes, so calls are never counted: everything goes by sigma.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..appearance import trusted
from ..correspondence import JointMatch, match
from ..descriptors import joint_descriptors, resize
from ..features import COND, RowFeatures
from ..foreground import otsu
from .capture import reference_pass
from .plan import Plan, View
from .prompts import Look, Prompt
from .structure import halved

log = logging.getLogger(__name__)

#: a row of the guidance pair: its kind, and the number of the positive prompt it belongs to
Row = tuple[str, int]
Grid = tuple[int, int]
#: sigma, and the decoder features of a row in its first call there
Levels = tuple[float, tuple[torch.Tensor, ...]]
#: descriptors of every reference, and of the target
Described = tuple[list[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Found:
    """A match that is kept."""

    visit: int  # the run's visit at which it was made
    match: JointMatch


@dataclass(eq=False)
class Run:
    """What carries over from call to call."""

    plan: Plan
    base: torch.nn.Module  # the host's BaseModel that samples: the plan's own, or another with the same weights
    sampling: object  # its noise schedule
    weights: object  # identity of the weights, part of the feature store's keys
    sigma_start: float
    sigma_end: float
    size: Grid | None  # of the whole latent; None where the host does not tell
    prompts: list[Prompt] = field(default_factory=list)  # the positive prompts, in the host's order
    last_prompt_type: str | None = None  # where the host has no start-of-sampling hook
    areas: bool = False  # some prompt is limited to an area
    kinds: dict[int, str] = field(default_factory=dict)  # the host's number of a row -> its kind
    rows: list[Row | None] = field(default_factory=list)  # of the last call's chunks; None: not the plan's, or seen before
    levels: dict[Row, Levels] = field(default_factory=dict)
    before: dict[Row, Levels] = field(default_factory=dict)  # those of the sigma before
    done: dict[Row, float] = field(default_factory=dict)  # the last sigma at which a call with this row came to its end
    sigma: float | None = None  # of the last call
    visit: int = 0  # sigmas visited so far
    found: dict[tuple[Row, Grid], Found] = field(default_factory=dict)
    maps: dict[int, torch.Tensor] = field(default_factory=dict)  # prompt -> foreground [B, 1, h, w] at the maps' size
    binaries: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # prompt -> map, and Otsu's mask of it
    references: dict[tuple, RowFeatures] = field(default_factory=dict)  # of the current sigma, on the device
    sizes: dict[int, Grid] = field(default_factory=dict)  # prompt -> size of the picture its rows see
    looks: dict[Row, Look] = field(default_factory=dict)  # what each row saw last
    torn: float | None = None  # the last sigma at which calls saw different pictures
    without_gradient: bool = False  # guidance found no gradient here
    spans: dict[tuple, tuple[float, float]] = field(default_factory=dict)  # guidance start and end -> sigmas

    def active(self, sigma: float) -> bool:
        return self.sigma_end <= sigma <= self.sigma_start and self.plan.settings.strength > 0

    def within(self, sigma: float, start: float, end: float) -> bool:
        """Whether ``sigma`` lies between two shares of the schedule."""
        if (start, end) not in self.spans:
            self.spans[start, end] = tuple(float(self.sampling.percent_to_sigma(share)) for share in (start, end))
        first, last = self.spans[start, end]
        return last <= sigma <= first

    def arrive(self, sigma: float) -> None:
        """Takes note of a call's sigma."""
        if sigma != self.sigma:
            self.sigma, self.visit = sigma, self.visit + 1

    def source(self, row: Row) -> Row:
        """The row whose reference features and match ``row`` takes."""
        return (COND, row[1]) if self.plan.settings.effort.shared else row

    def skip(self, reason: str) -> None:
        """Says once per run why something was left out."""
        if reason not in self.plan.trace.skipped:
            self.plan.trace.skipped.append(reason)
            log.warning("DreamMatcher: %s", reason)

    def features(self, kind: str, sigma: float, like: torch.Tensor) -> list[RowFeatures]:
        """Features of every reference at ``sigma``: from this step, from its store, or from a pass of the UNet."""
        return [self._features(number, view, kind, sigma, like) for number, view in enumerate(self.plan.views)]

    def _features(self, number: int, view: View, kind: str, sigma: float, like: torch.Tensor) -> RowFeatures:
        sigma = view.store.snap(sigma)
        key = (self.weights, kind, sigma, view.subject)
        if (number, key) not in self.references:
            row = view.store.get(key, like.device, like.dtype)
            if row is None:
                row = reference_pass(self.base, self.plan.structure, view.reference, kind, view.subject, sigma, like.device)
                view.store.put(key, row)
                row = row.to(like.device, like.dtype)
            self.references = {known: value for known, value in self.references.items()
                               if known[0] != number or known[1][2] == sigma}
            self.references[number, key] = row
        return self.references[number, key]

    def find(self, row: Row, grid: Grid, level: int, size: int, described: dict[Row, Described]) -> JointMatch | None:
        """Correspondence of ``size`` pictures at one grid, kept for as many noise levels as the effort says.

        ``row`` is a :meth:`source`; ``described`` keeps descriptors for the next grid. The target's features are those of
        the sigma before, as in the official code: None where there are none.
        """
        kept = self.found.get((row, grid))
        if kept and kept.match.size == size and self.visit - kept.visit < self.plan.settings.effort.every:
            return kept.match
        newest = self.levels.get(row, (None,))[0]
        known, levels = (self.before if newest == self.sigma else self.levels).get(row, (None, ()))
        if known is None or levels[0].shape[0] != size:
            return None
        if row not in described:
            described[row] = self.describe(row[0], self.sigma, levels)
        self.found[row, grid] = Found(self.visit, self.match(described[row], grid, level))
        return self.found[row, grid].match

    def describe(self, kind: str, sigma: float, levels: tuple[torch.Tensor, ...]) -> Described:
        references = self.features(kind, sigma, levels[0])
        return joint_descriptors([list(row.levels) for row in references], list(levels), pca=self.plan.settings.effort.pca)

    def match(self, described: Described, grid: Grid, level: int) -> JointMatch:
        """Correspondence at a target's ``grid``, ``level`` halvings under the latent."""
        sources, target = described
        wanted = resize(target, grid)
        found = []
        for view, source in zip(self.plan.views, sources):
            own_grid = halved(tuple(view.reference.latent.shape[-2:]), level)
            own = resize(source, own_grid)
            found.append(match(own, wanted, reference_mask=_limit(view.mask, own_grid, source.device),
                               unit=own is source and wanted is target))
        return JointMatch.of(found)

    def foreground(self, prompt: int, grid: Grid, size: int, device: torch.device, rivals: list[Run]) -> torch.Tensor | None:
        """M at one grid, [size, 1, H, W]: nothing where another subject's map is larger. None while it is not known."""
        mine = self._soft(prompt, grid, size, device)
        if mine is None or self.plan.mask.target_mask is not None:
            return mine
        for rival in rivals:
            theirs = rival._soft(prompt, grid, size, device)
            if theirs is not None:
                mine = torch.where(mine >= theirs, mine, torch.zeros_like(mine))
        return mine

    def _soft(self, prompt: int, grid: Grid, size: int, device: torch.device) -> torch.Tensor | None:
        settings = self.plan.mask
        if settings.target_mask is not None:
            if self.prompts and self.prompts[prompt].limited:
                self.skip("a painted target MASK belongs to the whole picture, not to a prompt's area; that prompt is left "
                          "as it is")
                return None
            given = settings.target_mask.to(device)
            given = F.interpolate(given[torch.arange(size, device=device) % given.shape[0]], size=grid, mode="area")
            return (given > 0.5).float() if settings.otsu else given
        known = self.maps.get(prompt)
        if known is None or known.shape[0] != size:
            return None
        return F.interpolate(self._binary(prompt, known) if settings.otsu else known, size=grid, mode="nearest")

    def _binary(self, prompt: int, soft: torch.Tensor) -> torch.Tensor:
        """Otsu's mask of a prompt's map, made once for all layers and rows that read it."""
        source, made = self.binaries.get(prompt, (None, None))
        if source is not soft:
            made = otsu(soft)
            self.binaries[prompt] = (soft, made)
        return made

    def trust(self, found: JointMatch, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """M' = M . U with strength and the references' weights, and U, [B, 1, H, W] each."""
        sure = found.confidence(mask, self.plan.mask.threshold, self.plan.settings.effort.least_slack)
        weights = found.pick([mask.new_full((1, 1, 1, 1), view.weight) for view in self.plan.views])
        return trusted(mask, sure, self.plan.settings.strength) * weights, sure

    def goal(self, row: Row, sigma: float, size: Grid, rivals: list[Run]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where guidance leads a clean estimate of ``size``: the warped reference [B, C, H, W] and M' [B, 1, H, W].

        By the match of the call at ``sigma``, or, where the effort shares nothing, a new one of that call's own features, as
        in the official code. None when that call was not one of this plan's.
        """
        source = self.source(row)
        if self.done.get(row) != sigma or source not in self.levels:
            return None
        _, levels = self.levels[source]
        mask = self.foreground(row[1], size, levels[0].shape[0], levels[0].device, rivals)
        if self.plan.settings.effort.shared:
            found = self.find(source, size, 0, levels[0].shape[0], {})
        else:
            found = self.match(self.describe(row[0], sigma, levels), size, 0)
        if found is None or mask is None:
            return None
        trust, _ = self.trust(found, mask)
        pictures = [view.reference.latent.to(mask.device, torch.float32) for view in self.plan.views]
        return found.warp(pictures), trust


def _limit(mask: torch.Tensor | None, grid: Grid, device: torch.device) -> torch.Tensor | None:
    if mask is None:
        return None
    return (F.adaptive_max_pool2d(mask.to(device), grid) > 0.5).float()

