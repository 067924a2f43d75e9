"""Matches what a sampling session sees of a subject with its references (DreamMatcher, Sec. 4.2 to 4.4).

Pure torch. The session says which row of the guidance pair is asked for, at which noise level, and hands in the decoder features
and subject maps that it observed; where reference features come from is the caller's business too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..attention import foreground, otsu
from ..backbones.base import Backbone, Grid, Site
from ..guidance_rows import Row
from ..sizes import spatial_size
from .appearance import trusted
from .correspondence import JointMatch, match
from .descriptors import joint_descriptors, resize
from .features import RowFeatures
from .foreground import WHOLE, at_grid, carried_over, tidied
from .memo import Memo
from .plan import View
from .settings import ApplySettings, MaskSettings

#: (kind of row, sigma, a tensor on the device and in the precision wanted) -> the features of every reference
ReferenceSource = Callable[[str, float, torch.Tensor], list[RowFeatures]]
#: (number of a reference, the device wanted) -> its foreground [1, 1, H, W] at its finest grid
ForegroundSource = Callable[[int, torch.device], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Described:
    """Descriptors [B, C, H, W] of every reference and of the target, and the precision in which they are compared."""

    references: list[torch.Tensor]
    target: torch.Tensor
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class _Kept:
    """A correspondence, and the number of the evaluation for which it was made."""

    evaluation: int
    match: JointMatch


@dataclass(eq=False)
class Matcher:
    """Correspondence, confidence and foreground of one plan in one sampling session."""

    views: tuple[View, ...]
    mask: MaskSettings
    settings: ApplySettings
    references: ReferenceSource
    backbone: Backbone
    foregrounds: ForegroundSource
    memo: Memo = field(default_factory=Memo)
    _kept: dict[tuple[Row, Grid], _Kept] = field(default_factory=dict)

    def forget(self) -> None:
        """Drops every correspondence that is kept: they may be another picture's."""
        self._kept.clear()

    def kept(self, row: Row, grid: Grid, size: int, evaluation: int) -> JointMatch | None:
        """The correspondence of ``size`` pictures, if it was made less than ``match.every`` evaluations before this one."""
        kept = self._kept.get((row, grid))
        if kept and kept.match.size == size and evaluation - kept.evaluation < self.settings.match.every:
            return kept.match
        return None

    def keep(self, row: Row, grid: Grid, evaluation: int, match: JointMatch) -> JointMatch:
        self._kept[row, grid] = _Kept(evaluation, match)
        return match

    def describe(self, kind: str, sigma: float, target: tuple[torch.Tensor, ...]) -> Described:
        """Joint descriptors of the references and of the ``target``'s decoder features [B, C, H, W], one per scale (Eq. 4)."""
        references = [row.whole_scales() for row in self.references(kind, sigma, target[0])]
        descriptors = joint_descriptors(references, list(target), pca=self.settings.match.pca)
        half = target[0].is_cuda and target[0].element_size() == 2  # bfloat16 would be too coarse for cosines
        return Described(*descriptors, torch.float16 if half else torch.float32)

    def match(self, described: Described, grid: Grid, site: Site | None) -> JointMatch:
        """Correspondence at a target's ``grid``: that of a ``site``, or of the latent itself where that is None (Eq. 5)."""
        wanted = resize(described.target, grid)
        matches = []
        for number, (view, source) in enumerate(zip(self.views, described.references)):
            latent = spatial_size(view.reference.latent)
            own_grid = latent if site is None else self.backbone.grid(site, latent)
            resized = resize(source, own_grid)
            matches.append(match(resized, wanted, reference_mask=self._limit(number, own_grid, source.device),
                               unit=resized is source and wanted is described.target, dtype=described.dtype))
        return JointMatch.of(matches)

    def _limit(self, number: int, grid: Grid, device: torch.device) -> torch.Tensor | None:
        """Mask of the positions at which a reference may be matched at one grid, [1, 1, H, W]; None: everywhere.

        A foreground that is carried over needs the matches outside of it too.
        """
        mask = self.views[number].mask
        if mask is None or self.mask.carried:
            return None
        return self.memo.get(("limit", number, grid, device), (mask,),
                             lambda: (F.adaptive_max_pool2d(mask.to(device), grid) > 0.5).float())

    def painted_foreground(self, grid: Grid, size: int, device: torch.device) -> torch.Tensor:
        """The painted target MASK at one grid, [size, 1, H, W]."""
        painted = self.mask.target_mask
        if painted is None:
            raise ValueError("target_mask: there is none")
        return self.memo.get(("painted", grid, size, device), (painted,), lambda: self._painted(painted.to(device), grid, size))

    def _painted(self, mask: torch.Tensor, grid: Grid, size: int) -> torch.Tensor:
        given = mask[torch.arange(size, device=mask.device) % mask.shape[0]]
        given = F.interpolate(given, size=grid, mode="area")
        return (given > 0.5).float() if self.mask.otsu else given

    def mapped_foreground(self, prompt: int, maps: list[torch.Tensor], grid: Grid) -> torch.Tensor:
        """M at one grid, [B, 1, H, W], of the subject maps [B, 1, h, w] that were read for a prompt (Sec. 4.2)."""
        whole = self.memo.get(("map", prompt), tuple(maps), lambda: self._binarised(foreground(maps, spatial_size(maps[0]))))
        return self.memo.get(("mask", prompt, grid), (whole,), lambda: F.interpolate(whole, size=grid, mode="nearest"))

    def claim(self, prompt: int, maps: list[torch.Tensor], grid: Grid) -> torch.Tensor:
        """The soft foreground at one grid, [B, 1, H, W], by which subjects that are carried over share the picture out."""
        return self.memo.get(("claim", prompt, grid), tuple(maps), lambda: foreground(maps, grid))

    def _binarised(self, soft: torch.Tensor) -> torch.Tensor:
        return otsu(soft) if self.mask.otsu else soft

    def carried_foreground(self, row: Row, match: JointMatch, device: torch.device) -> torch.Tensor:
        """M at the match's grid, [B, 1, H, W]: where it lies on its reference's foreground, painted or found."""
        def known(number: int, grid: Grid) -> torch.Tensor:
            whole = self.foregrounds(number, device)
            return self.memo.get(("known", number, grid), (whole,), lambda: at_grid(whole, grid))

        def make() -> torch.Tensor:
            return tidied(carried_over([known(number, each.reference_size) for number, each in enumerate(match.matches)], match))

        return self.memo.get(("carried", row, match.matches[0].target_size), (match,), make)

    def contested(self, prompt: int, grid: Grid, mine: torch.Tensor, theirs: list[torch.Tensor]) -> torch.Tensor:
        """``mine`` where no rival subject's foreground is larger, else 0."""
        if not theirs:
            return mine
        return self.memo.get(("contest", prompt, grid), (mine, *theirs), lambda: torch.where(
            mine >= torch.stack(theirs).amax(0), mine, torch.zeros_like(mine)))

    def closeness(self, row: Row, match: JointMatch, carried: torch.Tensor) -> torch.Tensor:
        """The similarity of each cell's match, [B, 1, H, W], within a foreground that was carried over: 0 to just under 1, so
        that a place which is painted goes before it."""
        below = 1 - torch.finfo(torch.float32).eps
        return self.memo.get(("closeness", row, spatial_size(carried)), (match, carried), lambda: carried * (
            match.pick([each.similarity for each in match.matches]).float().clamp(0, below)))

    def shared_out(self, prompt: int, carried: torch.Tensor, contested: torch.Tensor) -> torch.Tensor:
        """A foreground [B, 1, H, W] that was carried over, where the subject's :meth:`contested` claim is left."""
        return self.memo.get(("shared out", prompt, spatial_size(carried)), (carried, contested),
                             lambda: carried * (contested > 0))

    def trust(self, row: Row, match: JointMatch, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """M' = M . U with strength and the references' weights, and the confidence U, [B, 1, H, W] each (Eq. 6)."""
        def make() -> tuple[torch.Tensor, torch.Tensor]:
            slack = torch.full_like(mask, WHOLE) if self.mask.carried else mask
            confidence = match.confidence(slack, self.mask.threshold, self.settings.match.least_slack)
            weights = match.pick([mask.new_full((1, 1, 1, 1), view.weight) for view in self.views])
            return trusted(mask, confidence, self.settings.strength) * weights, confidence

        return self.memo.get(("trust", row, tuple(mask.shape[-2:])), (match, mask), make)

    def warped_references(self, match: JointMatch, device: torch.device) -> torch.Tensor:
        """The references' clean latents, carried to where the target is [B, C, H, W]."""
        latents = tuple(view.reference.latent for view in self.views)
        return match.warp(self.memo.get(
            ("latents", device), latents, lambda: [latent.to(device, torch.float32) for latent in latents]))
