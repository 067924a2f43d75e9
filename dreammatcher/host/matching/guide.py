"""Semantic matching guidance on a model that DreamMatcher Apply returned."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

import torch

from ...matching.features import COND
from ...matching.guidance import PAPER, GuidanceSettings, correction, lead, shortened, slope
from ...matching.matcher import Row
from ..gradients import NoGradient, with_gradients
from ..installed import PLANS_KEY, Seat, seats_of
from ..patches import rival_runs
from ..session import Session, noise_level
from ..verify import WrappersMP, options_of

log = logging.getLogger(__name__)


def guide(model, settings: GuidanceSettings):
    """A clone of ``model`` whose clean estimates are led towards the warped reference.

    Raises ValueError for a model without DreamMatcher Apply.
    """
    if not seats_of(model.model_options.get("transformer_options", {})):
        raise ValueError("model: there is nothing to guide towards; connect the MODEL output of DreamMatcher Apply")
    clone = model.clone()
    if settings.weight == 0:
        return clone
    clone.set_model_sampler_post_cfg_function(lambda arguments: _lead(arguments, settings))
    if settings.mode == PAPER:
        _install_gradient(clone, settings)
    return clone


@dataclass(frozen=True, eq=False)
class Goal:
    """Where one plan leads some rows of a batch."""

    session: Session
    rows: slice
    warped: torch.Tensor  # [B, C, H, W]
    trust: torch.Tensor  # [B, 1, H, W]


def _goal(seat: Seat, seats: tuple[Seat, ...], row: Row, rows: slice, sigma: float, size: tuple[int, int]) -> Goal | None:
    session = seat.holder.session()
    if session.seen.sizes.get(row[1]) != size:
        session.skip("guidance leads whole pictures only: a prompt limited to an area is left to appearance matching")
        return None
    found = session.guidance_target(row, sigma, size, rival_runs(seat, {PLANS_KEY: seats}, sigma))
    return None if found is None else Goal(session, rows, *found)


def _guided_seats(seats: tuple[Seat, ...], settings: GuidanceSettings, sigma: float) -> list[Seat]:
    """Those whose run is matched and guided at ``sigma``."""
    running = [(seat, seat.holder.session()) for seat in seats]
    return [seat for seat, session in running
            if session is not None and session.active(sigma) and session.clock.within(sigma, settings.start, settings.end)]


def _lead(arguments: dict, settings: GuidanceSettings) -> torch.Tensor:
    """Mode ``fast``, on the estimate after classifier-free guidance; also for calls that mode ``paper`` could not serve."""
    clean = arguments["denoised"]
    seats = seats_of(arguments["model_options"].get("transformer_options", {}))
    first = next((session for seat in seats if (session := seat.holder.session()) is not None), None)
    if first is None:
        return clean
    sigma = first.clock.read(arguments["sigma"])
    for seat in _guided_seats(seats, settings, sigma):
        session = seat.holder.session()
        if settings.mode == PAPER and not session.without_gradient:
            continue
        for row in sorted(row for row, (known, levels) in session.seen.levels.items()
                          if row[0] == COND and known == sigma and levels[0].shape[0] == clean.shape[0]):
            goal = _goal(seat, seats, row, slice(None), sigma, tuple(clean.shape[-2:]))
            if goal is not None:
                clean = lead(clean, goal.warped, goal.trust, settings.weight)
    return clean


def _install_gradient(model, settings: GuidanceSettings) -> None:
    """Mode ``paper``: a way around the host's ``apply_model``, on new hosts as a wrapper, on old ones as an object patch."""
    if WrappersMP is not None and hasattr(model, "add_wrapper_with_key"):
        def around(executor, x, t, *args, **kwargs):
            return _guided(executor.class_obj, executor, settings, options_of(args, kwargs), x, t, args, kwargs)

        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"dreammatcher_{uuid.uuid4().hex}", around)
        return
    previous = model.get_model_object("apply_model")

    def apply_model(x, t, *args, **kwargs):
        return _guided(model.model, previous, settings, kwargs.get("transformer_options", {}), x, t, args, kwargs)

    model.add_object_patch("apply_model", apply_model)


def _guided(base, apply_model, settings: GuidanceSettings, options: dict, x, t, args: tuple, kwargs: dict) -> torch.Tensor:
    """The clean estimate [B, C, H, W] of one call, corrected row by row."""
    sigma = noise_level(t)
    seats = seats_of(options)
    wanted = [seat for seat in _guided_seats(seats, settings, sigma) if not seat.holder.session().without_gradient]
    if not wanted:
        return apply_model(x, t, *args, **kwargs)

    def estimate(leaf: torch.Tensor, ready: tuple) -> torch.Tensor:
        time, positional, named = ready
        clean = apply_model(leaf, time, *positional, **named)
        if not clean.requires_grad:
            _give_up(wanted, "another pack runs the model without gradients")
            return clean
        with torch.no_grad():
            goals = _call_goals(wanted, seats, sigma, clean.detach())
            slopes = _slopes(clean.detach(), goals)
        if not goals:
            return clean.detach()
        try:
            gradient = prediction_gradient(base, clean, leaf, time, slopes)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _give_up(wanted, str(error).splitlines()[0])
            return clean.detach()
        with torch.no_grad():
            return _corrected(clean.detach(), correction(gradient, sigma, settings.weight), goals)

    try:
        return with_gradients(base, x, (t, args, kwargs), estimate)
    except NoGradient as error:
        _give_up(wanted, str(error))
        return apply_model(x, t, *args, **kwargs)


def _give_up(seats: list[Seat], reason: str) -> None:
    for seat in seats:
        session = seat.holder.session()
        session.without_gradient = True
        session.skip(f"mode paper is not possible here ({reason}); this run is guided in mode fast")


def _call_goals(wanted: list[Seat], seats: tuple[Seat, ...], sigma: float, clean: torch.Tensor) -> list[Goal]:
    """The goals of a call's chunks; what an earlier call at this sigma had is not led again."""
    goals = []
    for seat in wanted:
        chunks = seat.holder.session().rows.last
        size = clean.shape[0] // max(1, len(chunks))
        for number, row in enumerate(chunks):
            if row is not None:
                rows = slice(number * size, (number + 1) * size)
                goals.append(_goal(seat, seats, row, rows, sigma, tuple(clean.shape[-2:])))
    return [goal for goal in goals if goal is not None]


def _slopes(clean: torch.Tensor, goals: list[Goal]) -> torch.Tensor:
    """The loss's slope [B, C, H, W] by the clean estimate."""
    slopes = torch.zeros_like(clean)
    for goal in goals:
        slopes[goal.rows] += slope(clean[goal.rows], goal.warped, goal.trust)
    return slopes


def prediction_gradient(base, clean: torch.Tensor, x: torch.Tensor, t: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """The loss's derivative by ``x`` through the network's prediction alone: all of it less what goes past the network.

    Slopes are scaled to 1 on the way, since half precision loses small ones.
    """
    scale = slopes.abs().amax().clamp_min(1e-30)
    whole, = torch.autograd.grad(clean, x, slopes / scale)
    beside = base.model_sampling.calculate_denoised(t, torch.zeros_like(x), x)
    direct, = torch.autograd.grad(beside, x, slopes / scale)
    return (whole - direct) * scale


def _corrected(clean: torch.Tensor, change: torch.Tensor, goals: list[Goal]) -> torch.Tensor:
    """Adds the change to every picture, cut to a useful length; where it is not finite, nothing."""
    result = clean.clone()
    for rows in {(goal.rows.start, goal.rows.stop): goal.rows for goal in goals}.values():
        own = [goal for goal in goals if goal.rows == rows]
        useful, finite = shortened(change[rows], clean[rows], [(goal.warped, goal.trust) for goal in own])
        if not bool(finite.all()):
            own[0].session.skip("the guidance gradient was not finite; such steps stay unguided (lower the weight if this "
                                "goes on)")
        result[rows] = torch.where(finite[:, None, None, None], clean[rows] + useful, clean[rows])
    return result
