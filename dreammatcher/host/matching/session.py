"""One Apply (DreamMatcher) while a model samples: what its calls observed, and what the matcher makes of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch

from ...backbones.base import Grid, Site
from ...guidance_rows import COND, Row
from ...matching.correspondence import JointMatch
from ...matching.matcher import Described, Matcher
from ...matching.plan import Plan
from ...sizes import spatial_size
from ..sampling.rows import Assignment
from ..sampling.runs import Installed
from ..sampling.session import Session

#: features at the backbone's taps [B, C, H, W], coarse to fine
Features = tuple[torch.Tensor, ...]
#: a session of one of the subjects -> its correspondence where the foreground is asked for
Correspondence = Callable[["MatchingSession"], JointMatch | None]


def _of_size(features: Features | None, size: int) -> Features | None:
    return None if features is None or features[0].shape[0] != size else features


@dataclass(eq=False)
class Observations:
    """Observations of the calls so far: decoder features, subject maps and sizes of each row."""

    features: dict[Row, Features] = field(default_factory=dict)  # of the current evaluation
    before: dict[Row, Features] = field(default_factory=dict)  # of each row's last evaluation before it
    served: set[Row] = field(default_factory=set)  # rows whose call in the current evaluation came to its end
    maps: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # prompt -> subject maps [B, 1, h, w] read last
    sizes: dict[int, Grid] = field(default_factory=dict)  # prompt -> size of the picture its rows see
    named: set[int] = field(default_factory=set)  # prompts in which the subject stands

    def begin_evaluation(self) -> None:
        self.before |= self.features
        self.features = {}
        self.served = set()

    def features_before(self, row: Row, size: int) -> Features | None:
        """The features of ``size`` pictures that a row's last evaluation before the current one left."""
        return _of_size(self.before.get(row), size)

    def features_so_far(self, row: Row, size: int) -> Features | None:
        """Those that the current evaluation left."""
        return _of_size(self.features.get(row), size)

    def forget_features(self) -> None:
        """Drops what may be another picture's."""
        for features in (self.features, self.before, self.served):
            features.clear()


@dataclass(eq=False)
class MatchingSession(Session):
    """A sampling session of one plan."""

    plan: Plan = field(kw_only=True)
    matcher: Matcher = field(kw_only=True)
    seen: Observations = field(default_factory=Observations)
    without_gradient: bool = False  # guidance found no gradient here

    def active(self, sigma: float) -> bool:
        """True if references are matched at ``sigma``."""
        return not self.plan.trace.off and self.clock.in_range(sigma)

    def begin_evaluation(self) -> None:
        super().begin_evaluation()
        self.seen.begin_evaluation()

    def arrive(self, sigma: float, given: torch.Tensor, names: Sequence[Hashable | None],
               inputs: Sequence[torch.Tensor]) -> Assignment:
        """Begins a call as :meth:`Session.arrive`, and forgets what was observed where one evaluation sees different pictures."""
        visited = self.clock.noise_levels_visited
        assignment = super().arrive(sigma, given, names, inputs)
        self.plan.trace.noise_levels += self.clock.noise_levels_visited > visited and self.active(sigma)
        if assignment.changed:
            self.seen.forget_features()
            self.matcher.forget()
        return assignment

    def source(self, row: Row) -> Row:
        """The row whose reference features and match ``row`` takes."""
        return (COND, row[1]) if self.plan.settings.match.shared else row

    def correspondence(self, row: Row, grid: Grid, site: Site | None, size: int,
                       described: dict[Row, Described]) -> JointMatch | None:
        """Correspondence of ``size`` pictures at one grid, kept for as many evaluations as the settings say.

        ``row`` is a :meth:`source`; ``site`` has that grid, None for the latent's own; ``described`` keeps descriptors for the
        next grid. The target's features are those of the evaluation before, as in the official code: None where there are none.
        Where the backbone allows it, sites behind its last tap match those of the current evaluation then.
        """
        backbone, features = self.plan.backbone, self.seen.features_before(row, size)
        if features is None and backbone.same_call:
            if site is not None and site[1] < backbone.taps[-1]:
                return None  # as in the evaluation's first call, so that its second one does not take a match which that one kept
            features = self.seen.features_so_far(row, size)
        kept = self.matcher.kept(row, grid, size, self.clock.evaluations_begun)
        if kept is not None or features is None:
            return kept
        if row not in described:
            described[row] = self.matcher.describe(row[0], self.clock.current, features)
        return self.matcher.keep(row, grid, self.clock.evaluations_begun, self.matcher.match(described[row], grid, site))

    @property
    def carries(self) -> bool:
        """True if the foreground comes of the match."""
        return self.plan.mask.carried and self.plan.mask.target_mask is None

    def matched_foreground(self, row: Row, grid: Grid, size: int, device: torch.device, rivals: list[MatchingSession],
                           correspondence: Correspondence) -> tuple[JointMatch, torch.Tensor] | None:
        """The correspondence of a :meth:`source` and M at its grid, [size, 1, H, W]. None while either is not known."""
        prompt = row[1]
        if self.carries:
            match = correspondence(self) if prompt in self.seen.named else None
            if match is None:
                return None
            carried = self.matcher.carried_foreground(row, match, device)
            shared = self._shared_out(prompt, carried, grid, size, device, rivals)
            return match, self._shared_by_match(row, match, shared, size, device, rivals, correspondence)
        mask = self._foreground(prompt, grid, size, device, rivals)
        match = None if mask is None else correspondence(self)
        return None if match is None or mask is None else (match, mask)

    def _shared_out(self, prompt: int, carried: torch.Tensor, grid: Grid, size: int, device: torch.device,
                    rivals: list[MatchingSession]) -> torch.Tensor:
        """A carried foreground where no rival's words are looked at more."""
        mine = self._claim(prompt, grid, size, device)
        theirs = [claim for rival in rivals if (claim := rival._claim(prompt, grid, size, device)) is not None]
        if mine is None or not theirs:
            return carried
        return self.matcher.shared_out(prompt, carried, self.matcher.contested(prompt, grid, mine, theirs))

    def _shared_by_match(self, row: Row, match: JointMatch, carried: torch.Tensor, size: int, device: torch.device,
                         rivals: list[MatchingSession], correspondence: Correspondence) -> torch.Tensor:
        """A carried foreground where no rival's match is closer, of those rivals with which words do not share it out."""
        prompt, grid = row[1], spatial_size(carried)
        if self._claim(prompt, grid, size, device) is not None:
            rivals = [rival for rival in rivals if rival._claim(prompt, grid, size, device) is None]
        theirs = [claim for rival in rivals if (claim := rival._closeness(row, grid, size, device, correspondence)) is not None]
        if not theirs:
            return carried
        mine = self.matcher.closeness(row, match, carried)
        return self.matcher.shared_out(prompt, carried, self.matcher.contested(prompt, grid, mine, theirs))

    def _closeness(self, row: Row, grid: Grid, size: int, device: torch.device,
                   correspondence: Correspondence) -> torch.Tensor | None:
        """The claim of this subject to each cell, by its match: [size, 1, H, W], 0 outside of its foreground."""
        if not self.carries:
            return self._own_foreground(row[1], grid, size, device)
        match = correspondence(self) if row[1] in self.seen.named else None
        return None if match is None else self.matcher.closeness(row, match, self.matcher.carried_foreground(row, match, device))

    def _claim(self, prompt: int, grid: Grid, size: int, device: torch.device) -> torch.Tensor | None:
        if self.plan.mask.target_mask is not None:
            return self._own_foreground(prompt, grid, size, device)
        maps = self.seen.maps.get(prompt)
        return self.matcher.claim(prompt, maps, grid) if maps and maps[0].shape[0] == size else None

    def _foreground(self, prompt: int, grid: Grid, size: int, device: torch.device,
                    rivals: list[MatchingSession]) -> torch.Tensor | None:
        """M by the target's attention or a painted mask: nothing where another subject's map is larger."""
        mine = self._own_foreground(prompt, grid, size, device)
        if mine is None or self.plan.mask.target_mask is not None:
            return mine
        theirs = [mask for rival in rivals if (mask := rival._own_foreground(prompt, grid, size, device)) is not None]
        return self.matcher.contested(prompt, grid, mine, theirs)

    def _own_foreground(self, prompt: int, grid: Grid, size: int, device: torch.device) -> torch.Tensor | None:
        if self.plan.mask.target_mask is not None:
            if self.rows.prompts and self.rows.prompts[prompt].area is not None:
                self.skip("a painted target MASK belongs to the whole picture, not to a prompt's area; that prompt is left "
                          "as it is")
                return None
            return self.matcher.painted_foreground(grid, size, device)
        maps = self.seen.maps.get(prompt)
        return self.matcher.mapped_foreground(prompt, maps, grid) if maps and maps[0].shape[0] == size else None

    def guidance_target(self, row: Row, sigma: float, size: Grid,
                        rivals: list[MatchingSession]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The target of guidance for a clean estimate of ``size``: the warped reference [B, C, H, W] and M' [B, 1, H, W].

        Both come of the match of the current evaluation, at ``sigma``, or, where the settings share nothing, of a new one of its
        own features, as in the official code. None when no call of it was this row's.
        """
        source = self.source(row)
        if row not in self.seen.served or source not in self.seen.features:
            return None
        features = self.seen.features[source]
        batch, device = features[0].shape[0], features[0].device

        def correspondence(of: MatchingSession) -> JointMatch | None:
            if self.plan.settings.match.shared or of is not self:
                return of.correspondence(source, size, None, batch, {})
            return self.matcher.match(self.matcher.describe(row[0], sigma, features), size, None)

        known = self.matched_foreground(source, size, batch, device, rivals, correspondence)
        if known is None:
            return None
        match, mask = known
        trust, _ = self.matcher.trust(source, match, mask)
        return self.matcher.warped_references(match, mask.device), trust


#: a plan on a model, and who holds its session
InstalledPlan = Installed[Plan, MatchingSession]
