"""Locks a picture to the references in an edit model's sequence: what Lock (DreamMatcher) puts on a model, and its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher

from ...backbones.base import Grid, Site
from ...guidance_rows import COND, UNCOND
from ...matching.locking import (
    ATTENTION,
    FACTOR,
    NO_PICTURE,
    TOO_FEW,
    Lock,
    LockPlan,
    LockSettings,
    LockTrace,
    foregrounds_at,
    found,
    locked,
    raised,
)
from ..graph.notes import server, show, tell
from ..model.attention_points import heard_call
from ..model.backbone import edit_backbone_of
from ..model.compiling import hide
from ..model.options import options_of
from ..model.patch_points import Attended, Pictures, Points
from ..sampling.lifecycle import install_plan, names_of
from ..sampling.model_calls import around_calls
from ..sampling.rows import RowBook
from ..sampling.runs import FOREIGN_KEY, LOCKED_KEY, Start, locked_on
from ..sampling.session import CallWatch, Clock, Session, noise_level
from .patches import BEGIN, MISFIT, UNHEARD, blocks_between

#: where the calls of the current forward stand in its transformer options, one for each lock that takes part
CALLS_KEY = "dreammatcher_lock_calls"


@dataclass(eq=False)
class LockSession(Session):
    """A sampling session of one lock."""

    plan: LockPlan = field(kw_only=True)
    kept: dict[tuple, Lock] = field(default_factory=dict)  # of positive prompts in the current evaluation, by size and grids
    _foregrounds: dict[tuple, list[torch.Tensor]] = field(default_factory=dict)

    def begin_evaluation(self) -> None:
        super().begin_evaluation()
        self.kept.clear()

    def leave(self, reason: str) -> None:
        """Takes note of why something was left as it is; it is said at the end of the run."""
        if reason not in self.skipped:
            self.skipped.append(reason)

    def foregrounds(self, grids: tuple[Grid, ...], device: torch.device) -> list[torch.Tensor] | None:
        """The references' foregrounds at their grids, made once; None without a mask."""
        masks = self.plan.masks
        if masks is None:
            return None
        if (grids, device) not in self._foregrounds:
            self._foregrounds[grids, device] = foregrounds_at(masks.to(device), grids)
        return self._foregrounds[grids, device]


@dataclass(eq=False)
class LockCall:
    """One forward of the network."""

    session: LockSession
    kinds: tuple[str, ...]  # of each chunk of the batch
    lock: Lock | None = None  # of all chunks, once the block that is matched has run

    def take(self, site: Site, pictures: Pictures) -> torch.Tensor:
        """The picture's values [K * B, N, C] at one block, locked to the references."""
        session, plan = self.session, self.session.plan
        if site not in plan.heard:
            return pictures.value
        chosen = plan.settings.chosen(len(pictures.others))
        if not chosen:
            if COND in self.kinds:  # a negative prompt may well have no picture of its own
                count = len(pictures.others)
                session.leave(TOO_FEW.format(chosen=plan.settings.reference, count=count) if count else NO_PICTURE)
            return pictures.value
        others = tuple(pictures.others[number] for number in chosen)
        if site[1] == plan.tap:
            self.lock = self._found(pictures, others, tuple(pictures.grids[number] for number in chosen))
        if self.lock is None or site not in plan.layers:
            return pictures.value
        plan.trace.layers += 1
        return pictures.value if plan.settings.way == ATTENTION else locked(pictures.value, others, self.lock)

    def follow(self, site: Site, attended: Attended) -> torch.Tensor:
        """The picture's output [K * B, heads, N, d] at one block, with more of its matches where the lock goes by attention."""
        plan = self.session.plan
        if plan.settings.way != ATTENTION or self.lock is None or site not in plan.layers:
            return attended.output
        chosen = [attended.others[number] for number in plan.settings.chosen(len(attended.others))]
        order = torch.cat([torch.arange(each.start, each.stop, device=self.lock.indices.device) for each in chosen])
        factor = 1 + self.lock.weight.flatten(1) * (FACTOR - 1)
        return raised(attended.output, attended.query, attended.key, attended.value, order.take(self.lock.indices), factor,
                      attended.mask)

    def _found(self, pictures: Pictures, others: tuple[torch.Tensor, ...], grids: tuple[Grid, ...]) -> Lock:
        """The lock of all chunks: positive prompts have a match of their own, and their negative takes the same."""
        session, count = self.session, len(self.kinds)
        size = pictures.value.shape[0] // count
        key = (size, pictures.grid, grids)
        positive = [number for number, kind in enumerate(self.kinds) if kind == COND]
        if not positive and key in session.kept:
            made = session.kept[key]
            return _joined([made] * count)
        matched = positive or list(range(count))
        foregrounds = session.foregrounds(grids, pictures.value.device)
        own = {}
        for number in matched:
            part = slice(number * size, (number + 1) * size)
            own[number] = found(pictures.value[part], pictures.grid, [each[part] for each in others], grids, foregrounds,
                                session.plan.settings)
        session.plan.trace.take(torch.stack([(each.weight > 0).float().mean() for each in own.values()]).amax())
        if positive:
            session.kept[key] = own[positive[0]]
        return _joined([own.get(number, own[matched[0]]) for number in range(count)])


def _joined(locks: list[Lock]) -> Lock:
    if len(locks) == 1:
        return locks[0]
    return Lock(torch.cat([each.indices for each in locks]), torch.cat([each.weight for each in locks]))


def lock(model: ModelPatcher, settings: LockSettings, masks: torch.Tensor | None = None, node: str = "",
         layers: str = "") -> tuple[ModelPatcher, LockTrace]:
    """A clone of ``model`` that locks its pictures to the references in its sequence, and the trace it fills.

    ``masks`` [R, 1, H, W] belong to the references that are matched, in their order. ``layers``: numbers of the blocks that are
    locked, with commas; empty are those of the way that is chosen. Raises ValueError for a model that has no references in its
    sequence, for a mask that is empty and for blocks that are none of those.
    """
    backbone = edit_backbone_of(model.model)
    if masks is not None and not bool((masks > 0.5).flatten(1).any(1).all()):
        raise ValueError("reference_mask: it is empty, so there would be nothing to match; paint the subject white")
    plan = LockPlan(backbone, settings, masks, LockTrace(), node, layers)
    clone, _ = install_plan(model, plan, LOCKED_KEY, _begin, lambda clone: around_calls(clone, LOCKED_KEY, _around))
    return clone, plan.trace


def _begin(plan: LockPlan, start: Start) -> LockSession:
    plan.trace.clear()
    plan.trace.off = plan.settings.strength == 0
    hide()
    clock = Clock.between(start.sampling, plan.settings.start, plan.settings.end)
    return LockSession(start.base, clock, RowBook(start.size), CallWatch(plan.heard | {BEGIN}), plan.trace.skipped,
                       partial(_conclude, plan), plan=plan)


def _conclude(plan: LockPlan) -> None:
    """At the end of a run: what it left as it is, and how much was locked, on the node and in the log."""
    trace, running = plan.trace, server()
    if trace.off:
        return
    reason = trace.why_nothing_locked()
    text = f"nothing was locked in this run: {reason}" if reason else "; ".join(trace.skipped)
    if text:
        tell(text)
    elif trace.share is not None:
        text = f"at most {100 * float(trace.share):.0f}% of the picture was locked to its references at a time"
    if running is not None and plan.node:
        show(running, plan.node, text, running.client_id)


def _around(call: Callable, *arguments, **named) -> torch.Tensor:
    """One call of the model, which tells where a block was not heard that is to be locked."""
    options = options_of(arguments, named)
    sessions = _sessions(options)
    if not sessions:
        return call(*arguments, **named)
    begun = [session.calls.forwards for session in sessions]
    for session in sessions:
        session.calls.heard.clear()
    result = heard_call(call, arguments, named, POINTS, sessions[0].plan.backbone)
    for session, before in zip(sessions, begun):
        lost = [site[1] for site in sorted(session.plan.heard) if site not in session.calls.heard]
        if lost and session.calls.forwards > before and not session.plan.trace.off:
            session.leave(UNHEARD.format(blocks=blocks_between(lost)))
    return result


def _sessions(options: dict) -> list[LockSession]:
    return [session for each in locked_on(options) if (session := each.holder.session()) is not None]


def _begin_calls(x: torch.Tensor, options: dict) -> None:
    """A forward begins that sees ``x`` [K * B, C, H, W]."""
    calls: list[LockCall] = []
    for session in _sessions(options):
        session.calls.heard.add(BEGIN)
        session.calls.forwards += 1
        if session.plan.trace.off or options.get(FOREIGN_KEY):
            continue
        sigma = noise_level(options["sigmas"])
        if not session.clock.announced and sigma != session.clock.sigma:
            session.begin_evaluation()
        session.clock.arrive(sigma, options["sigmas"])
        if session.clock.in_range(sigma):
            calls.append(LockCall(session, _kinds(session, options)))
    options[CALLS_KEY] = tuple(calls)


def _kinds(session: LockSession, options: dict) -> tuple[str, ...]:
    """The kind of each chunk. Where the host does not tell, the first list of prompts is the positive one, as it is there."""
    numbers, positive = options["cond_or_uncond"], session.rows.numbers()
    names = names_of(options, session.rows)
    return tuple(COND if name in positive or (name is None and number == 0) else UNCOND for name, number in zip(names, numbers))


def _take(site: Site, pictures: Pictures, options: dict) -> torch.Tensor:
    _hear(site, options)
    value = pictures.value
    with torch.no_grad():
        for call in options.get(CALLS_KEY, ()):
            value = call.take(site, Pictures(value, pictures.grid, pictures.others, pictures.grids))
    return value


def _follow(site: Site, attended: Attended, options: dict) -> torch.Tensor:
    output = attended.output
    with torch.no_grad():
        for call in options.get(CALLS_KEY, ()):
            output = call.follow(site, replace(attended, output=output))
    return output


def _misfit(site: Site, options: dict) -> None:
    _hear(site, options)
    for call in options.get(CALLS_KEY, ()):
        call.session.leave(MISFIT)


def _hear(site: Site, options: dict) -> None:
    for session in _sessions(options):
        session.calls.heard.add(site)


#: what is done at the points of a call
POINTS = Points(begin=_begin_calls, pictures=_take, misfit=_misfit, attended=_follow)
