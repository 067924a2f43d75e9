"""The points through which a call of the network is matched, and how they are put on a model.

They belong to no plan: all they need stands in the call's transformer options. A graph that torch.compile has made of one
matched model therefore serves every other plan on that UNet. torch.compile must see nothing of what they decide: newer hosts
have it skip the guards on transformer options, so one block's graph serves every block of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from ...backbones.base import Backbone, Grid, Site, Tap
from ...backbones.dit import DiTBackbone
from ...guidance_rows import COND, Row
from ...sizes import spatial_size
from ..model.attention_points import heard_call
from ..model.capture import SubjectMaps
from ..model.options import options_of
from ..model.patch_points import APART_KEY, Apart, Points, install_in_front
from ..sampling.lifecycle import names_of
from ..sampling.model_calls import WrappersMP, around_calls
from ..sampling.runs import FOREIGN_KEY, INPUT_KEY, installed_on
from ..sampling.session import noise_level
from .call import Call
from .session import InstalledPlan, MatchingSession

#: where the calls of the current forward stand in its transformer options, one for each plan that takes part
CALLS_KEY = "dreammatcher_calls"
#: under which the wrapper of a transformer's calls stands
LISTENING = "dreammatcher_listening"
MISFIT = ("the picture's tokens are not told apart in this model's sequence (another pack changes it, or there is more than one "
          "frame); such calls are left as they are")
UNHEARD = ("these blocks run without ComfyUI's options for attention, so nothing is matched there: {blocks}. Another pack "
           "(TeaCache, Nunchaku) runs this model in a way of its own")
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
    if session.plan.mask.target_mask is not None:
        return readers
    if subject is None:  # a reference_mask says which subject: whatever matches it
        session.seen.named.update(row[1] for row in rows if row is not None and row[0] == COND)
        return readers
    for chunk, row in enumerate(rows):
        if row is not None and row[0] == COND and (place := session.place(names[chunk], subject)) is not None:
            session.seen.named.add(row[1])
            if session.plan.backbone.readers and (rivals or not session.carries):
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
            call.read_map(site, n, context, value)
    return n, context, value


def _inject(site: Site, n, context, value, extra: dict) -> tuple:
    calls = extra.get(CALLS_KEY, ())
    _hear(extra, VALUES, site)
    n, context, value = _detached(calls, n, context, value)
    others = None
    with torch.no_grad():
        for call in sorted((call for call in calls if _takes_part(call, site)), key=lambda call: call.apart):
            given = n, context, value
            n, context, value = call.inject(site, n, context, value)
            if call.apart and others is None and value is not given[2]:
                others = given
        if others is not None:
            extra[APART_KEY] = Apart(others, (value != others[2]).any(-1, keepdim=True))
    return n, context, value


def _takes_part(call: Call, site: Site) -> bool:
    return site in call.session.plan.layers and call.session.active(call.sigma)


def _keep_feature(tap: Tap, h: torch.Tensor, options: dict) -> None:
    _hear(options, FEATURE)
    if tap not in installed_on(options)[0].plan.backbone.taps:
        return
    for call in options.get(CALLS_KEY, ()):
        call.keep_scale(tap, h)


def _misfit(site: Site, options: dict) -> None:
    _hear(options, VALUES, FEATURE, site)
    for call in options.get(CALLS_KEY, ()):
        call.session.skip(MISFIT)


#: what is done at the points of a call
POINTS = Points(_begin_calls, _read_maps, _inject, _keep_feature, _misfit)
PATCHES = POINTS.patches()


def points_heard(backbone: Backbone) -> frozenset:
    """The points that every call of a network must reach."""
    return frozenset((BEGIN, VALUES, FEATURE) if isinstance(backbone, DiTBackbone) else (BEGIN, VALUES, FEATURE, PROMPT))


def install_points(model, backbone: Backbone) -> None:
    """Puts the points on a model: in a UNet in front of the patches of other packs, in a transformer at every call."""
    if isinstance(backbone, DiTBackbone):
        model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, LISTENING)  # one for all plans, inside of the session's own
        around_calls(model, LISTENING, _listening)
    else:
        install_in_front(model, PATCHES)


def _listening(call: Callable, *arguments, **named) -> torch.Tensor:
    """One call of a transformer, which tells where a block was not heard that is to be matched."""
    options = options_of(arguments, named)
    running = [(installed, session) for installed in installed_on(options) if (session := installed.holder.session()) is not None]
    if not running:
        return call(*arguments, **named)
    begun = running[0][1].calls.forwards
    result = heard_call(call, arguments, named, POINTS, running[0][0].plan.backbone)
    heard = running[0][1].calls.heard
    for installed, session in running:
        lost = [site[1] for site in installed.plan.layers if site not in heard]
        if lost and running[0][1].calls.forwards > begun and not installed.plan.trace.off:
            session.skip(UNHEARD.format(blocks=blocks_between(lost)))
    return result


def blocks_between(numbers: list[int]) -> str:
    """Numbers of blocks, in their order, as a text."""
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
