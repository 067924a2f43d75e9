"""State of one sampling session: from its start to its end, whatever the number of UNet calls.

A sampler calls the UNet as often as it likes, so calls are never counted: everything goes by sigma.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch

from ..matching.correspondence import JointMatch
from ..matching.features import COND
from ..matching.matcher import Described, Grid, Matcher, Row
from ..matching.plan import Plan
from .prompts import Look, Prompt

log = logging.getLogger(__name__)

#: sigma, and the decoder features of a row in its first call there
Levels = tuple[float, tuple[torch.Tensor, ...]]


def noise_level(given: torch.Tensor) -> float:
    """Sigma of a call, from the host's tensor of one per picture. This waits for the device."""
    return float(given.flatten()[0])


@dataclass(eq=False)
class Clock:
    """Noise levels of a session: where it is, and which sigmas the user's shares of the schedule are."""

    sampling: object  # the model's noise schedule
    start: float  # sigma from which, and
    end: float  # to which, references are matched
    sigma: float | None = None  # of the last call
    number: int = 0  # of the noise levels visited so far
    _given: torch.Tensor | None = None  # the host's tensor that sigma was read from
    _spans: dict[tuple, tuple[float, float]] = field(default_factory=dict)

    def in_range(self, sigma: float) -> bool:
        return self.end <= sigma <= self.start

    def within(self, sigma: float, start: float, end: float) -> bool:
        """Whether ``sigma`` lies between two shares of the schedule."""
        if (start, end) not in self._spans:
            self._spans[start, end] = tuple(float(self.sampling.percent_to_sigma(share)) for share in (start, end))
        first, last = self._spans[start, end]
        return last <= sigma <= first

    def arrive(self, sigma: float, given: torch.Tensor) -> bool:
        """Takes note of a call's sigma, read from the host's ``given``. Whether it is another than the last call's."""
        self._given = given
        if sigma == self.sigma:
            return False
        self.sigma, self.number = sigma, self.number + 1
        return True

    def read(self, given: torch.Tensor) -> float:
        """The noise level in ``given``, without another look at the device where the last call had the same tensor."""
        return self.sigma if given is self._given else noise_level(given)


@dataclass(eq=False)
class RowBook:
    """What tells whose rows a call's batch holds."""

    size: Grid | None  # of the whole latent; None where the host does not tell
    prompts: list[Prompt] = field(default_factory=list)  # the positive prompts, in the host's order
    last_prompt_type: str | None = None  # where the host has no start-of-sampling hook
    areas: bool = False  # some prompt is limited to an area
    kinds: dict[int, str] = field(default_factory=dict)  # the host's number of a row -> its kind
    last: list[Row | None] = field(default_factory=list)  # of the last call's chunks; None: not the plan's, or seen before
    looks: dict[Row, Look] = field(default_factory=dict)  # what each row saw last
    torn: float | None = None  # the last sigma at which calls saw different pictures


@dataclass(eq=False)
class Observations:
    """What the calls so far left of each row: decoder features, subject maps, sizes."""

    levels: dict[Row, Levels] = field(default_factory=dict)
    before: dict[Row, Levels] = field(default_factory=dict)  # those of the sigma before
    done: dict[Row, float] = field(default_factory=dict)  # the last sigma at which a call with this row came to its end
    maps: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # prompt -> subject maps [B, 1, h, w] read last
    sizes: dict[int, Grid] = field(default_factory=dict)  # prompt -> size of the picture its rows see

    def add(self, row: Row, sigma: float, features: tuple[torch.Tensor, ...]) -> None:
        """Decoder features [B, C, H, W], coarse to fine, of a row's call at ``sigma``."""
        if row in self.levels:
            self.before[row] = self.levels[row]
        self.levels[row] = (sigma, features)

    def before_sigma(self, row: Row, sigma: float, size: int) -> tuple[torch.Tensor, ...] | None:
        """The features of ``size`` pictures that a row's last call before this ``sigma`` left."""
        newest = self.levels.get(row, (None,))[0]
        known, features = (self.before if newest == sigma else self.levels).get(row, (None, ()))
        return None if known is None or features[0].shape[0] != size else features

    def forget_features(self) -> None:
        for known in (self.levels, self.before, self.done):
            known.clear()


@dataclass(eq=False)
class CallWatch:
    """Which of our patches run, and on what: see :mod:`.verify`."""

    forwards: int = 0  # of the UNet, with our patches
    heard: set = field(default_factory=set)  # our patches that ran in the current call, and layers injected into
    stale: bool = False  # a graph was used that had been compiled without our patches
    changed: bool = False  # another pack changes the picture in front of the UNet


@dataclass(eq=False)
class Session:
    """One plan while a model samples."""

    plan: Plan
    base: torch.nn.Module  # the host's BaseModel that samples: the plan's own, or another with the same weights
    clock: Clock
    rows: RowBook
    matcher: Matcher
    seen: Observations = field(default_factory=Observations)
    calls: CallWatch = field(default_factory=CallWatch)
    notes: list[str] = field(default_factory=list)
    without_gradient: bool = False  # guidance found no gradient here

    def active(self, sigma: float) -> bool:
        return self.clock.in_range(sigma) and self.plan.settings.strength > 0

    def arrive(self, sigma: float, given: torch.Tensor) -> None:
        """Takes note of a call's sigma, read from the host's ``given``."""
        if self.clock.arrive(sigma, given):
            self.plan.trace.levels += self.active(sigma)

    def source(self, row: Row) -> Row:
        """The row whose reference features and match ``row`` takes."""
        return (COND, row[1]) if self.plan.settings.effort.shared else row

    def note(self, text: str) -> None:
        """Says something once per session."""
        if text not in self.notes:
            self.notes.append(text)
            log.info("DreamMatcher: %s", text)

    def skip(self, reason: str) -> None:
        """Says once per session why something was left out."""
        if reason not in self.plan.trace.skipped:
            self.plan.trace.skipped.append(reason)
            log.warning("DreamMatcher: %s", reason)

    def tear(self, sigma: float) -> None:
        """Calls at ``sigma`` see different pictures: what was seen so far may be another's."""
        self.rows.torn = sigma
        self.seen.forget_features()
        self.matcher.forget()
        self.skip("calls at one noise level see different pictures (tiles, restarts); such steps are left as they are")

    def correspondence(self, row: Row, grid: Grid, halvings: int, size: int,
                       described: dict[Row, Described]) -> JointMatch | None:
        """Correspondence of ``size`` pictures at one grid, kept for as many noise levels as the effort says.

        ``row`` is a :meth:`source`; ``described`` keeps descriptors for the next grid. The target's features are those of
        the sigma before, as in the official code: None where there are none.
        """
        kept = self.matcher.kept(row, grid, size, self.clock.number)
        if kept is not None:
            return kept
        features = self.seen.before_sigma(row, self.clock.sigma, size)
        if features is None:
            return None
        if row not in described:
            described[row] = self.matcher.describe(row[0], self.clock.sigma, features)
        return self.matcher.keep(row, grid, self.clock.number, self.matcher.match(described[row], grid, halvings))

    def foreground(self, prompt: int, grid: Grid, size: int, device: torch.device,
                   rivals: list[Session]) -> torch.Tensor | None:
        """M at one grid, [size, 1, H, W]: nothing where another subject's map is larger. None while it is not known."""
        mine = self._own_foreground(prompt, grid, size, device)
        if mine is None or self.plan.mask.target_mask is not None:
            return mine
        theirs = [mask for rival in rivals if (mask := rival._own_foreground(prompt, grid, size, device)) is not None]
        return self.matcher.contested(prompt, grid, mine, theirs)

    def _own_foreground(self, prompt: int, grid: Grid, size: int, device: torch.device) -> torch.Tensor | None:
        if self.plan.mask.target_mask is not None:
            if self.rows.prompts and self.rows.prompts[prompt].limited:
                self.skip("a painted target MASK belongs to the whole picture, not to a prompt's area; that prompt is left "
                          "as it is")
                return None
            return self.matcher.painted_foreground(grid, size, device)
        maps = self.seen.maps.get(prompt)
        return self.matcher.mapped_foreground(prompt, maps, grid) if maps and maps[0].shape[0] == size else None

    def guidance_target(self, row: Row, sigma: float, size: Grid,
                        rivals: list[Session]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where guidance leads a clean estimate of ``size``: the warped reference [B, C, H, W] and M' [B, 1, H, W].

        By the match of the call at ``sigma``, or, where the effort shares nothing, a new one of that call's own features, as
        in the official code. None when that call was not one of this plan's.
        """
        source = self.source(row)
        if self.seen.done.get(row) != sigma or source not in self.seen.levels:
            return None
        _, features = self.seen.levels[source]
        batch, device = features[0].shape[0], features[0].device
        mask = self.foreground(row[1], size, batch, device, rivals)
        if self.plan.settings.effort.shared:
            found = self.correspondence(source, size, 0, batch, {})
        else:
            found = self.matcher.match(self.matcher.describe(row[0], sigma, features), size, 0)
        if found is None or mask is None:
            return None
        trust, _ = self.matcher.trust(source, found, mask)
        return self.matcher.warped_references(found, mask.device), trust
