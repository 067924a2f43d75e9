"""Semantic matching guidance on a model that DreamMatcher Apply returned."""

from __future__ import annotations

import logging
import uuid

import torch

from ..features import COND
from ..guidance import PAPER, GuidanceSettings, accepted, correction, lead, slope
from .apply import rival_runs
from .gradients import NoGradient, with_gradients
from .lifecycle import WrappersMP
from .plan import PLANS_KEY, Seat, seats_of
from .run import Run, kinds_of

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


def _goals(seats: tuple[Seat, ...], settings: GuidanceSettings, kind: str, sigma: float, clean: torch.Tensor):
    """Run, warped reference and trust of every plan that knows where to lead a ``clean`` [B, C, H, W] of one kind."""
    options = {PLANS_KEY: seats}
    for seat in seats:
        run = seat.holder.run()
        if run is None or not run.active(sigma) or not run.within(sigma, settings.start, settings.end):
            continue
        for prompt in sorted({row[1] for row in run.levels if row[0] == kind}):
            goal = _goal(run, (kind, prompt), sigma, clean, rival_runs(seat, options))
            if goal is not None:
                yield run, *goal


def _goal(run: Run, row: tuple[str, int], sigma: float, clean: torch.Tensor, rivals: list[Run]):
    known, levels = run.levels[row]
    if known != sigma or levels[0].shape[0] != clean.shape[0]:
        return None
    if run.sizes.get(row[1]) != tuple(clean.shape[-2:]):
        run.skip("guidance leads whole pictures only: a prompt limited to an area is left to appearance matching")
        return None
    return run.goal(row, sigma, tuple(clean.shape[-2:]), rivals)


def _lead(arguments: dict, settings: GuidanceSettings) -> torch.Tensor:
    """Mode ``fast``, on the estimate after classifier-free guidance; also for calls that mode ``paper`` could not serve."""
    clean = arguments["denoised"]
    sigma = float(arguments["sigma"].flatten()[0])
    seats = seats_of(arguments["model_options"].get("transformer_options", {}))
    for run, warped, trust in _goals(seats, settings, COND, sigma, clean):
        if settings.mode != PAPER or run.without_gradient:
            clean = lead(clean, warped, trust, settings.weight)
    return clean


def _install_gradient(model, settings: GuidanceSettings) -> None:
    """Mode ``paper``: a way around the host's ``apply_model``, on new hosts as a wrapper, on old ones as an object patch."""
    if WrappersMP is not None and hasattr(model, "add_wrapper_with_key"):
        def around(executor, x, t, *args, **kwargs):
            options = next((value for value in (*args, kwargs.get("transformer_options")) if _is_options(value)), {})
            return _guided(model.model, executor, settings, options, x, t, args, kwargs)

        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"dreammatcher_{uuid.uuid4().hex}", around)
        return
    previous = model.get_model_object("apply_model")

    def apply_model(x, t, *args, **kwargs):
        return _guided(model.model, previous, settings, kwargs.get("transformer_options", {}), x, t, args, kwargs)

    model.add_object_patch("apply_model", apply_model)


def _is_options(value: object) -> bool:
    return isinstance(value, dict) and "cond_or_uncond" in value


def _guided(base, apply_model, settings: GuidanceSettings, options: dict, x, t, args: tuple, kwargs: dict) -> torch.Tensor:
    """The clean estimate [B, C, H, W] of one call, corrected row by row."""
    sigma = float(t.flatten()[0])
    seats = seats_of(options)
    runs = [run for run in (seat.holder.run() for seat in seats) if run is not None]
    wanted = [run for run in runs if run.active(sigma) and run.within(sigma, settings.start, settings.end)
              and not run.without_gradient]
    if not wanted or not options.get("cond_or_uncond"):
        return apply_model(x, t, *args, **kwargs)
    kinds = kinds_of(options["cond_or_uncond"])

    def estimate(leaf: torch.Tensor, ready: tuple) -> torch.Tensor:
        time, positional, named = ready
        clean = apply_model(leaf, time, *positional, **named)
        with torch.no_grad():
            slopes, goals = _slopes(seats, settings, kinds, sigma, clean.detach())
        if not goals:
            return clean.detach()
        gradient = _prediction_gradient(base, clean, leaf, time, slopes)
        with torch.no_grad():
            return _corrected(clean.detach(), correction(gradient, sigma, settings.weight), goals)

    try:
        return with_gradients(base, x, (t, args, kwargs), estimate)
    except NoGradient as error:
        for run in wanted:
            run.without_gradient = True
            run.skip(f"mode paper is not possible here ({error}); this run is guided in mode fast")
        return apply_model(x, t, *args, **kwargs)


def _slopes(seats, settings, kinds: tuple[str, ...], sigma: float, clean: torch.Tensor):
    """The loss's slope [B, C, H, W] by the clean estimate, and where it comes from: (run, rows, warped, trust)."""
    slopes, goals = torch.zeros_like(clean), []
    size = clean.shape[0] // len(kinds)
    for chunk, kind in enumerate(kinds):
        if kind in kinds[:chunk]:
            continue
        rows = slice(chunk * size, (chunk + 1) * size)
        for run, warped, trust in _goals(seats, settings, kind, sigma, clean[rows]):
            slopes[rows] += slope(clean[rows], warped, trust)
            goals.append((run, rows, warped, trust))
    return slopes, goals


def _prediction_gradient(base, clean: torch.Tensor, x: torch.Tensor, t: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """The loss's derivative by ``x`` through the network's prediction alone: all of it less what goes past the network."""
    if not clean.requires_grad:
        raise NoGradient("another pack runs the model without gradients")
    whole, = torch.autograd.grad(clean, x, slopes)
    beside = base.model_sampling.calculate_denoised(t, torch.zeros_like(x), x)
    direct, = torch.autograd.grad(beside, x, slopes)
    return whole - direct


def _corrected(clean: torch.Tensor, change: torch.Tensor, goals: list) -> torch.Tensor:
    """Adds the change to every picture where it is finite and can come nearer."""
    result = clean.clone()
    for run, rows, warped, trust in goals:
        good = accepted(change[rows], clean[rows], warped, trust)
        if not bool(good.all()):
            run.skip("the guidance gradient was not finite, or longer than the way to the reference; such steps stay "
                     "unguided (lower the weight if this goes on)")
        result[rows] = torch.where(good[:, None, None, None], clean[rows] + change[rows], clean[rows])
    return result
