"""The four patches through which a UNet call is matched.

They belong to no plan: all they need stands in the call's transformer options. A graph that torch.compile has made of one
matched model therefore serves every other plan on that UNet. torch.compile must see nothing of what they decide: newer hosts
have it skip the guards on transformer options, so one block's graph serves every block of the same shape.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from ...backbones.base import Grid, Site, Tap
from ...guidance_rows import COND, Row
from ...sizes import spatial_size
from ..model.capture import SubjectMaps
from ..model.patch_points import Points, install_in_front
from ..sampling.lifecycle import names_of
from ..sampling.runs import FOREIGN_KEY, INPUT_KEY, installed_on
from ..sampling.session import noise_level
from .call import Call
from .session import InstalledPlan, MatchingSession

#: where the calls of the current forward stand in its transformer options, one for each plan that takes part
CALLS_KEY = "dreammatcher_calls"
#: points of a call, as they are heard
BEGIN, PROMPT, VALUES, FEATURE = "begin", "prompt", "values", "feature"


def _hear(options: dict, *what: str | Site) -> None:
    """Takes note that a patch runs in this call: torch.compile may have left it out."""
    session = next((session for each in installed_on(options) if (session := each.holder.session()) is not None), None)
    if session is not None:  # the one that around_call asks
        session.calls.heard.update(what)


def _begin_calls(h: torch.Tensor, options: dict) -> None:
    _hear(options, BEGIN)
    calls = (_begin_call(installed, h, options) for installed in installed_on(options))
    options[CALLS_KEY] = tuple(call for call in calls if call is not None)


def _begin_call(installed: InstalledPlan, h: torch.Tensor, options: dict) -> Call | None:
    session, plan = installed.holder.session(), installed.plan
    if session is None:
        return None
    session.calls.forwards += 1
    if plan.trace.off or options.get(FOREIGN_KEY):
        return None
    sigma = noise_level(options["sigmas"])
    if sigma < session.clock.end:
        return None
    chunks = options.get(INPUT_KEY, h).detach().chunk(len(options["cond_or_uncond"]))
    names = names_of(options, session.rows)
    rows = session.arrive(sigma, options["sigmas"], names, chunks).rows
    grid = spatial_size(h)
    rivals = rivals_of(installed, options, sigma)
    readers = _readers(session, names, rows, grid, rivals) if session.active(sigma) else {}
    detached = torch.is_grad_enabled() and h.requires_grad
    return Call(session, rows, grid, readers, rivals, detached)


def _readers(session: MatchingSession, names: list[Hashable | None], rows: tuple[Row | None, ...],
             grid: Grid, rivals: list[MatchingSession]) -> dict[int, SubjectMaps]:
    """The reader of the subject's map for each positive chunk, by the columns of the prompt that the chunk comes from.

    A foreground that is carried over needs none where there is no other subject to share the picture with.
    """
    subject, readers = session.plan.mask.target_subject, dict[int, SubjectMaps]()
    if session.plan.mask.target_mask is not None or subject is None:
        return readers
    for chunk, row in enumerate(rows):
        if row is not None and row[0] == COND and (place := session.place(names[chunk], subject)) is not None:
            session.seen.named.add(row[1])
            if rivals or not session.carries:
                readers[chunk] = SubjectMaps.of(session.base, session.plan.backbone, place, grid)
    return readers


def rivals_of(installed: InstalledPlan, options: dict, sigma: float) -> list[MatchingSession]:
    """Sessions of other subjects on the same model that are matched at ``sigma``."""
    others = (other.holder.session() for other in installed_on(options) if installed.plan.rivals(other.plan))
    return [session for session in others if session is not None and session.active(sigma)]


def _detached(calls: tuple[Call, ...], *tensors) -> tuple:
    """Without their gradients where guidance holds attention constant."""
    if not any(call.detached for call in calls):
        return tensors
    return tuple(tensor.detach() if torch.is_tensor(tensor) else tensor for tensor in tensors)


def _read_maps(site: Site, n, context, value, extra: dict) -> tuple:
    _hear(extra, PROMPT)
    calls = extra.get(CALLS_KEY, ())
    n, context, value = _detached(calls, n, context, value)
    with torch.no_grad():
        for call in calls:
            call.read_map(site, n, context)
    return n, context, value


def _inject(site: Site, n, context, value, extra: dict) -> tuple:
    calls = extra.get(CALLS_KEY, ())
    _hear(extra, VALUES, site)
    n, context, value = _detached(calls, n, context, value)
    with torch.no_grad():
        for call in calls:
            if _takes_part(call, site):
                n, context, value = call.inject(site, n, context, value)
    return n, context, value


def _takes_part(call: Call, site: Site) -> bool:
    return site in call.session.plan.layers and call.session.active(call.sigma)


def _keep_feature(tap: Tap, h: torch.Tensor, options: dict) -> None:
    _hear(options, FEATURE)
    if tap not in installed_on(options)[0].plan.backbone.taps:
        return
    for call in options.get(CALLS_KEY, ()):
        call.keep_scale(tap, h)


#: the points of a call that must be heard, and what is done there
POINTS_HEARD = (BEGIN, PROMPT, VALUES, FEATURE)
PATCHES = Points(_begin_calls, _read_maps, _inject, _keep_feature).patches()


def install(model) -> None:
    """Puts the patches on a model, in front of those of other packs."""
    install_in_front(model, PATCHES)
