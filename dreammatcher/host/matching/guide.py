"""Semantic matching guidance on a model that Apply (DreamMatcher) returned."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, replace

import torch
from comfy.model_patcher import ModelPatcher

from ...backbones.base import Grid
from ...backbones.unet import UNetBackbone
from ...devices import OutOfMemory
from ...guidance_rows import COND, Row
from ...matching.foreground import inside
from ...matching.guidance import FAST, INSIDE, PAPER, GuidanceSettings, correction, lead, shortened, slope
from ...sizes import single_frame, spatial_size, with_frame
from ..graph.notes import tell
from ..model.digest import standing_around
from ..model.gradients import NoGradient, statically_loaded, with_gradients
from ..sampling.model_calls import WrappersMP, options_of
from ..sampling.runs import INSTALLED_KEY, installed_on
from ..sampling.session import noise_level
from .patches import rivals_of
from .session import InstalledPlan, MatchingSession

log = logging.getLogger(__name__)


def guide(model: ModelPatcher, settings: GuidanceSettings) -> ModelPatcher:
    """A clone of ``model`` whose clean estimates are led towards the warped reference. In mode ``paper`` its weights stay on the
    device.

    A model without Apply (DreamMatcher), as behind a bypassed one, goes on as it is, with a note.
    """
    if not installed_on(model.model_options.get("transformer_options", {})):
        tell("model: there is nothing to guide towards, so it goes on as it is; connect the MODEL output of Apply "
             "(DreamMatcher), or switch that node on again")
        return model
    if settings.weight == 0:
        return model.clone()
    backbone = installed_on(model.model_options["transformer_options"])[0].plan.backbone
    if settings.mode == PAPER and not isinstance(backbone, UNetBackbone):
        tell("mode paper leads through a UNet's gradient; this model is guided in mode fast")
        settings = replace(settings, mode=FAST)
    clone = (_whole(model) if settings.mode == PAPER else model).clone()
    clone.set_model_sampler_post_cfg_function(Leading(settings))
    if settings.mode == PAPER:
        _install_gradient(clone, settings)
    return clone


@dataclass(frozen=True)
class Leading:
    """Guidance's function behind classifier-free guidance. It leads every subject of the model."""

    settings: GuidanceSettings

    def __call__(self, arguments: dict) -> torch.Tensor:
        return _lead(arguments, self.settings)


def is_led(model: ModelPatcher) -> bool:
    """True if a model is guided already."""
    return any(isinstance(function, Leading) for function in model.model_options.get("sampler_post_cfg_function", ()))


def _whole(model: ModelPatcher) -> ModelPatcher:
    try:
        return statically_loaded(model)
    except NoGradient as error:
        tell(f"mode paper is not possible here ({error}); runs are guided in mode fast")
        return model


@dataclass(frozen=True, eq=False)
class GuidanceTarget:
    """The target to which one plan leads some rows of a batch."""

    session: MatchingSession
    rows: slice
    warped: torch.Tensor  # [B, C, H, W]
    trust: torch.Tensor  # [B, 1, H, W]


#: a plan with its session, which is matched and guided at a noise level
Guided = tuple[InstalledPlan, MatchingSession]


def _target(guided: Guided, everyone: tuple[InstalledPlan, ...], row: Row, rows: slice, sigma: float,
            size: Grid) -> GuidanceTarget | None:
    installed, session = guided
    if session.seen.sizes.get(row[1]) != size:
        session.skip("guidance leads whole pictures only: a prompt limited to an area is left to appearance matching")
        return None
    target = session.guidance_target(row, sigma, size, rivals_of(installed, {INSTALLED_KEY: everyone}, sigma))
    return None if target is None else GuidanceTarget(session, rows, *target)


def _guided_at(sigma: float, everyone: tuple[InstalledPlan, ...], settings: GuidanceSettings) -> list[Guided]:
    """Those whose session is matched and guided at ``sigma``."""
    running = [(installed, installed.holder.session()) for installed in everyone]
    return [(installed, session) for installed, session in running
            if session is not None and session.active(sigma) and session.clock.within(sigma, settings.start, settings.end)]


def _lead(arguments: dict, settings: GuidanceSettings) -> torch.Tensor:
    """Modes ``fast`` and ``inside``, on the estimate after classifier-free guidance; also for calls that mode ``paper`` could not
    serve."""
    given = arguments["denoised"]
    clean = single_frame(given)
    everyone: tuple[InstalledPlan, ...] = installed_on(arguments["model_options"].get("transformer_options", {}))
    first = next((session for installed in everyone if (session := installed.holder.session()) is not None), None)
    if first is None or given.ndim == 5 and given.shape[2] != 1:
        return given
    sigma = first.clock.read(arguments["sigma"])
    for guided in _guided_at(sigma, everyone, settings):
        _, session = guided
        if (settings.mode == PAPER and not session.without_gradient) or session.clock.sigma != sigma:
            continue
        for row in sorted(row for row, features in session.seen.features.items()
                          if row[0] == COND and features[0].shape[0] == clean.shape[0]):
            target = _target(guided, everyone, row, slice(None), sigma, spatial_size(clean))
            if target is not None:
                trust = inside(target.trust) if settings.mode == INSIDE else target.trust
                clean = lead(clean, target.warped, trust, settings.weight)
    return with_frame(clean, given)


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

    model.add_object_patch("apply_model", standing_around(previous, apply_model))


def _guided(base, apply_model, settings: GuidanceSettings, options: dict, x, t, args: tuple, kwargs: dict) -> torch.Tensor:
    """The clean estimate [B, C, H, W] of one call, corrected row by row."""
    sigma = noise_level(t)
    everyone: tuple[InstalledPlan, ...] = installed_on(options)
    guided = [each for each in _guided_at(sigma, everyone, settings) if not each[1].without_gradient]
    if not guided:
        return apply_model(x, t, *args, **kwargs)

    def estimate(leaf: torch.Tensor, ready: tuple) -> torch.Tensor:
        time, positional, named = ready
        clean = apply_model(leaf, time, *positional, **named)
        if not clean.requires_grad:
            _give_up(guided, "another pack runs the model without gradients")
            return clean
        with torch.no_grad():
            targets = _call_targets(guided, everyone, sigma, clean.detach())
            slopes = _slopes(clean.detach(), targets)
        if not targets:
            return clean.detach()
        try:
            gradient = prediction_gradient(base, clean, leaf, time, slopes)
        except OutOfMemory:
            raise
        except RuntimeError as error:
            _give_up(guided, str(error).splitlines()[0])
            return clean.detach()
        with torch.no_grad():
            return _corrected(clean.detach(), correction(gradient, sigma, settings.weight), targets)

    try:
        return with_gradients(base, x, (t, args, kwargs), estimate)
    except NoGradient as error:
        _give_up(guided, str(error))
        return apply_model(x, t, *args, **kwargs)


def _give_up(guided: list[Guided], reason: str) -> None:
    for _, session in guided:
        session.without_gradient = True
        session.skip(f"mode paper is not possible here ({reason}); this run is guided in mode fast")


def _call_targets(guided: list[Guided], everyone: tuple[InstalledPlan, ...], sigma: float,
                  clean: torch.Tensor) -> list[GuidanceTarget]:
    """The targets of a call's chunks; what an earlier call of this evaluation had is not led again."""
    targets = []
    for each in guided:
        chunks = each[1].rows.last
        size = clean.shape[0] // max(1, len(chunks))
        for number, row in enumerate(chunks):
            if row is not None:
                rows = slice(number * size, (number + 1) * size)
                targets.append(_target(each, everyone, row, rows, sigma, spatial_size(clean)))
    return [target for target in targets if target is not None]


def _slopes(clean: torch.Tensor, targets: list[GuidanceTarget]) -> torch.Tensor:
    """The loss's slope [B, C, H, W] by the clean estimate."""
    slopes = torch.zeros_like(clean)
    for target in targets:
        slopes[target.rows] += slope(clean[target.rows], target.warped, target.trust)
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


def _corrected(clean: torch.Tensor, change: torch.Tensor, targets: list[GuidanceTarget]) -> torch.Tensor:
    """Adds the change to every picture, cut to a useful length; where it is not finite, nothing."""
    result = clean.clone()
    for rows in {(target.rows.start, target.rows.stop): target.rows for target in targets}.values():
        sharing = [target for target in targets if target.rows == rows]
        useful, finite = shortened(change[rows], clean[rows], [(target.warped, target.trust) for target in sharing])
        if not bool(finite.all()):
            sharing[0].session.skip("the guidance gradient was not finite; such steps stay unguided (lower the weight if this "
                                "goes on)")
        result[rows] = torch.where(finite[:, None, None, None], clean[rows] + useful, clean[rows])
    return result
