"""State of one sampling run: from its start to its end, whatever the number of UNet calls.

A sampler calls the UNet as often as it likes, so calls are never counted: everything goes by sigma.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..attention import foreground, otsu
from ..matching.appearance import trusted
from ..matching.correspondence import JointMatch, match
from ..matching.descriptors import joint_descriptors, resize
from ..matching.features import COND, Layer, RowFeatures
from .capture import reference_pass
from .memo import Memo
from .plan import Plan, View
from .prompts import Look, Prompt
from .structure import halved

log = logging.getLogger(__name__)

#: a row of the guidance pair: its kind, and the number of the positive prompt it belongs to
Row = tuple[str, int]
Grid = tuple[int, int]
#: sigma, and the decoder features of a row in its first call there
Levels = tuple[float, tuple[torch.Tensor, ...]]


def noise_level(given: torch.Tensor) -> float:
    """Sigma of a call, from the host's tensor of one per picture. This waits for the device."""
    return float(given.flatten()[0])


@dataclass(frozen=True, eq=False)
class Described:
    """Descriptors [B, C, H, W] of every reference and of the target, and in which precision they are compared."""

    sources: list[torch.Tensor]
    target: torch.Tensor
    dtype: torch.dtype


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
    sigma_given: torch.Tensor | None = None  # the host's tensor that it was read from
    visit: int = 0  # sigmas visited so far
    found: dict[tuple[Row, Grid], Found] = field(default_factory=dict)
    maps: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # prompt -> subject maps [B, 1, h, w] read last
    memo: Memo = field(default_factory=Memo)
    references: dict[tuple, RowFeatures] = field(default_factory=dict)  # of the current sigma, on the device
    sizes: dict[int, Grid] = field(default_factory=dict)  # prompt -> size of the picture its rows see
    looks: dict[Row, Look] = field(default_factory=dict)  # what each row saw last
    torn: float | None = None  # the last sigma at which calls saw different pictures
    forwards: int = 0  # of the UNet, with our patches
    heard: set[str | Layer] = field(default_factory=set)  # our patches that ran in the current call, and layers injected into
    notes: list[str] = field(default_factory=list)
    stale: bool = False  # a graph was used that had been compiled without our patches
    changed: bool = False  # another pack changes the picture in front of the UNet
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

    def arrive(self, sigma: float, given: torch.Tensor) -> None:
        """Takes note of a call's sigma, read from the host's ``given``."""
        self.sigma_given = given
        if sigma != self.sigma:
            self.sigma, self.visit = sigma, self.visit + 1
            self.plan.trace.levels += self.active(sigma)

    def read(self, given: torch.Tensor) -> float:
        """The noise level in ``given``, without another look at the device where the last call had the same tensor."""
        return self.sigma if given is self.sigma_given else noise_level(given)

    def source(self, row: Row) -> Row:
        """The row whose reference features and match ``row`` takes."""
        return (COND, row[1]) if self.plan.settings.effort.shared else row

    def note(self, text: str) -> None:
        """Says something once per run."""
        if text not in self.notes:
            self.notes.append(text)
            log.info("DreamMatcher: %s", text)

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
        made = joint_descriptors([list(row.levels) for row in references], list(levels), pca=self.plan.settings.effort.pca)
        half = levels[0].is_cuda and levels[0].element_size() == 2  # bfloat16 would be too coarse for cosines
        return Described(*made, torch.float16 if half else torch.float32)

    def match(self, described: Described, grid: Grid, level: int) -> JointMatch:
        """Correspondence at a target's ``grid``, ``level`` halvings under the latent."""
        wanted = resize(described.target, grid)
        found = []
        for number, (view, source) in enumerate(zip(self.plan.views, described.sources)):
            own_grid = halved(tuple(view.reference.latent.shape[-2:]), level)
            own = resize(source, own_grid)
            found.append(match(own, wanted, reference_mask=self._limit(number, own_grid, source.device),
                               unit=own is source and wanted is described.target, dtype=described.dtype))
        return JointMatch.of(found)

    def _limit(self, number: int, grid: Grid, device: torch.device) -> torch.Tensor | None:
        """Where a reference may be matched at one grid, [1, 1, H, W]; None: everywhere."""
        mask = self.plan.views[number].mask
        if mask is None:
            return None
        return self.memo.get(("limit", number, grid, device), (mask,),
                             lambda: (F.adaptive_max_pool2d(mask.to(device), grid) > 0.5).float())

    def foreground(self, prompt: int, grid: Grid, size: int, device: torch.device, rivals: list[Run]) -> torch.Tensor | None:
        """M at one grid, [size, 1, H, W]: nothing where another subject's map is larger. None while it is not known."""
        mine = self._own_foreground(prompt, grid, size, device)
        if mine is None or self.plan.mask.target_mask is not None:
            return mine
        theirs = [mask for rival in rivals if (mask := rival._own_foreground(prompt, grid, size, device)) is not None]
        if not theirs:
            return mine
        return self.memo.get(("contest", prompt, grid), (mine, *theirs), lambda: torch.where(
            mine >= torch.stack(theirs).amax(0), mine, torch.zeros_like(mine)))

    def _own_foreground(self, prompt: int, grid: Grid, size: int, device: torch.device) -> torch.Tensor | None:
        painted = self.plan.mask.target_mask
        if painted is not None:
            if self.prompts and self.prompts[prompt].limited:
                self.skip("a painted target MASK belongs to the whole picture, not to a prompt's area; that prompt is left "
                          "as it is")
                return None
            return self.memo.get(("painted", grid, size, device), (painted,),
                                 lambda: self._painted(painted.to(device), grid, size))
        maps = self.maps.get(prompt)
        if not maps or maps[0].shape[0] != size:
            return None
        whole = self.memo.get(("map", prompt), tuple(maps), lambda: self._sharpened(foreground(maps, maps[0].shape[-2:])))
        return self.memo.get(("mask", prompt, grid), (whole,), lambda: F.interpolate(whole, size=grid, mode="nearest"))

    def _painted(self, mask: torch.Tensor, grid: Grid, size: int) -> torch.Tensor:
        given = mask[torch.arange(size, device=mask.device) % mask.shape[0]]
        given = F.interpolate(given, size=grid, mode="area")
        return (given > 0.5).float() if self.plan.mask.otsu else given

    def _sharpened(self, soft: torch.Tensor) -> torch.Tensor:
        return otsu(soft) if self.plan.mask.otsu else soft

    def trust(self, source: Row, found: JointMatch, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """M' = M . U with strength and the references' weights, and U, [B, 1, H, W] each, for rows that match as ``source``."""
        def make() -> tuple[torch.Tensor, torch.Tensor]:
            sure = found.confidence(mask, self.plan.mask.threshold, self.plan.settings.effort.least_slack)
            weights = found.pick([mask.new_full((1, 1, 1, 1), view.weight) for view in self.plan.views])
            return trusted(mask, sure, self.plan.settings.strength) * weights, sure

        return self.memo.get(("trust", source, tuple(mask.shape[-2:])), (found, mask), make)

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
        trust, _ = self.trust(source, found, mask)
        return found.warp(self._pictures(mask.device)), trust

    def _pictures(self, device: torch.device) -> list[torch.Tensor]:
        latents = tuple(view.reference.latent for view in self.plan.views)
        return self.memo.get(("pictures", device), latents, lambda: [latent.to(device, torch.float32) for latent in latents])
