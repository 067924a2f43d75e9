"""The four patches through which a UNet call is matched.

They belong to no plan: all they need stands in the call's transformer options. A graph that torch.compile has made of one
matched model therefore serves every other plan on that UNet. torch.compile must see nothing of what they decide: newer hosts
have it skip the guards on transformer options, so one block's graph serves every block of the same shape.
"""

from __future__ import annotations

import torch

from ..unet import Layer
from .call import Call
from .capture import SubjectMaps, layer_of
from .compiling import hidden
from .installed import Seat, seats_of
from .prompts import looks
from .session import Session, noise_level

#: where the calls of the current forward stand in its transformer options, one for each plan that takes part
CALLS_KEY = "dreammatcher_calls"
#: set in the transformer options of a forward that another pack makes of a picture of its own
FOREIGN_KEY = "dreammatcher_foreign"


def begin(h, options):
    hidden(_begin_calls, h, options)
    return h


def read_maps(n, context, value, extra):
    return hidden(_read_maps, n, context, value, extra)


def inject(n, context, value, extra):
    return hidden(_inject, n, context, value, extra)


def keep_level(h, skip, options):
    hidden(_keep_level, h, options)
    return h, skip


PATCHES = {"input_block_patch": begin, "attn2_patch": read_maps, "attn1_patch": inject, "output_block_patch": keep_level}


def install(model) -> None:
    """Puts the patches in front of those of other packs, which may regroup tokens: ours see them as the UNet made them."""
    patches = model.model_options["transformer_options"]["patches"]
    for name, patch in PATCHES.items():
        if patch not in patches.get(name, ()):
            model.set_model_patch(patch, name)
            patches[name] = [patch, *(other for other in patches[name] if other is not patch)]


def _hear(options: dict, *what: str | Layer) -> None:
    """Takes note that a patch runs in this call: torch.compile may have left it out."""
    session = seats_of(options)[0].holder.session()
    if session is not None:
        session.calls.heard.update(what)


def all_heard(session: Session) -> bool:
    """Whether every patch ran in this call, and in every layer that is matched."""
    return session.calls.heard.issuperset((*PATCHES, *session.plan.layers))


def _begin_calls(h: torch.Tensor, options: dict) -> None:
    if options["block"] != ("input", 0):
        return
    _hear(options, "input_block_patch")
    calls = (_begin_call(seat, h, options) for seat in seats_of(options))
    options[CALLS_KEY] = tuple(call for call in calls if call is not None)


def _begin_call(seat: Seat, h: torch.Tensor, options: dict) -> Call | None:
    session, plan = seat.holder.session(), seat.plan
    if session is None:
        return None
    session.calls.forwards += 1
    if plan.settings.strength == 0 or options.get(FOREIGN_KEY):
        return None
    sigma = noise_level(options["sigmas"])
    if sigma < session.clock.end:
        return None
    session.arrive(sigma, options["sigmas"])
    latent_size = tuple(h.shape[-2:])
    readers = None
    if plan.mask.target_mask is None and session.active(sigma):
        readers = SubjectMaps.of(session.base, plan.structure, plan.mask.target_subject, latent_size)
    detached = torch.is_grad_enabled() and h.requires_grad
    return Call(session, sigma, tuple(options["cond_or_uncond"]), latent_size, readers, looks(h, sigma),
                rival_runs(seat, options, sigma), detached)


def rival_runs(seat: Seat, options: dict, sigma: float) -> list[Session]:
    """Runs of other subjects on the same model that are matched at ``sigma``."""
    others = (other.holder.session() for other in seats_of(options) if seat.plan.rivals(other.plan))
    return [session for session in others if session is not None and session.active(sigma)]


def _detached(calls: tuple[Call, ...], *tensors) -> tuple:
    """Without their gradients where guidance holds attention constant."""
    if not any(call.detached for call in calls):
        return tensors
    return tuple(tensor.detach() if torch.is_tensor(tensor) else tensor for tensor in tensors)


def _read_maps(n, context, value, extra: dict) -> tuple:
    _hear(extra, "attn2_patch")
    calls, layer = extra.get(CALLS_KEY, ()), layer_of(extra)
    n, context, value = _detached(calls, n, context, value)
    with torch.no_grad():
        for call in calls:
            call.read_map(layer, n, context)
    return n, context, value


def _inject(n, context, value, extra: dict) -> tuple:
    calls, layer = extra.get(CALLS_KEY, ()), layer_of(extra)
    _hear(extra, "attn1_patch", layer)
    n, context, value = _detached(calls, n, context, value)
    with torch.no_grad():
        for call in calls:
            if _takes_part(call, layer):
                context, value = call.inject(layer, context, value)
    return n, context, value


def _takes_part(call: Call, layer: Layer) -> bool:
    return layer in call.session.plan.layers and call.session.active(call.sigma)


def _keep_level(h: torch.Tensor, options: dict) -> None:
    _hear(options, "output_block_patch")
    if options["block"][1] not in seats_of(options)[0].plan.structure.taps:
        return
    for call in options.get(CALLS_KEY, ()):
        call.keep_level(options["block"][1], h)
