"""Installs ViCo on a clone of the user's model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ...subject import Subject
from ...vico.learned import ViCo
from ...vico.settings import LookSettings, LookTrace
from ..graph.notes import not_connected, tell
from ..graph.records import RECORDS, Place, here, owner_here
from ..model.arguments import context_of
from ..model.backbone import unet_backbone_of
from ..model.blocks import changed
from ..model.compiling import uncompiled
from ..model.memory import share_of_memory
from ..sampling.lifecycle import install_plan, names_of
from ..sampling.model_calls import around_calls, options_of, with_option
from ..sampling.runs import Installed, Start
from ..sampling.session import CallWatch, Clock, noise_level
from .session import LookingRows, VicoCall, VicoPlan, VicoSession
from .sites import widths

#: where the plans of a model stand in its transformer options, and the calls of the current forward
PLANS_KEY, CALLS_KEY = "dreammatcher_vico", "dreammatcher_vico_calls"


def apply_or_pass(model, vico: ViCo | None, reference: Callable[[], torch.Tensor], settings: LookSettings,
                  subject: Subject | None) -> tuple[Any, LookTrace]:
    """:func:`apply_vico`; without what was learned the model as it is, with a note, and a trace that says so."""
    if vico is None:
        source = "ViCo Train (DreamMatcher) or ViCo Load (DreamMatcher)"
        return model, LookTrace(missing=not_connected("vico", source, "the model goes on as it is"))
    return apply_vico(model, vico, reference(), settings, subject)


def apply_vico(model, vico: ViCo, reference: torch.Tensor, settings: LookSettings,
               subject: Subject | None) -> tuple[Any, LookTrace]:
    """A clone of ``model`` that looks at ``reference`` [R, C, h, w] while sampling, and the trace it fills.

    Raises ValueError for a model of an unknown family, or of another kind than the one that ``vico`` was learned on.
    """
    backbone = unet_backbone_of(model.model)
    channels = model.model.latent_format.latent_channels
    if reference.shape[1] != channels:
        raise ValueError(f"reference: its latent has {reference.shape[1]} channels, this model takes {channels}")
    try:
        blocks = vico.blocks(widths(model.model))
    except ValueError as error:
        raise ValueError(f"vico: {error}") from error
    plan = VicoPlan(backbone, blocks, reference.detach().float().cpu().clone(), settings, subject,
                    LookTrace(off=settings.strength == 0, owner=owner_here()))
    clone, _ = install_plan(model, plan, PLANS_KEY, _begin, lambda clone: around_calls(clone, PLANS_KEY, _around))
    return clone, plan.trace


def _begin(plan: VicoPlan, start: Start) -> VicoSession:
    plan.trace.clear()
    plan.store.start_run()
    clock = Clock.between(start.sampling, plan.settings.start, plan.settings.end)
    return VicoSession(start.base, clock, LookingRows(None, plan.subject), CallWatch(), plan.trace.skipped,
                       partial(_conclude, plan.trace, here()), plan=plan, network=start.identity(), room=share_of_memory())


def _conclude(trace: LookTrace, place: Place) -> None:
    RECORDS.keep(trace.owner, place, trace.finished())
    if not trace.off and (reason := trace.why_nothing_seen()):
        tell(f"ViCo looked at nothing in this run: {reason}")


def _around(call: Callable, *arguments, **named) -> torch.Tensor:
    options = options_of(arguments, named)
    calls = _calls(options, arguments[0], context_of(arguments, named)) if PLANS_KEY in options else ()
    if not calls:
        return call(*arguments, **named)
    with changed(calls[0].session.sites, _change), uncompiled():  # a compiled graph would not see the hooks
        return with_option(call, arguments, named, CALLS_KEY, calls)


def _change(site, states: torch.Tensor, options: dict) -> torch.Tensor:
    for call in options.get(CALLS_KEY, ()):
        states = call.change(site, states)
    return states


def _calls(options: dict, x: torch.Tensor, context: torch.Tensor | None) -> tuple[VicoCall, ...]:
    """The work of each plan of the model in a call that sees ``x`` [K B, C, H, W]."""
    plans: tuple[Installed[VicoPlan, VicoSession], ...] = options[PLANS_KEY]
    sessions = [session for each in plans if (session := each.holder.session()) is not None]
    if not sessions or context is None:
        return ()
    sigma = noise_level(options["sigmas"])
    calls = (_call(session, sigma, options, x, context) for session in sessions)
    return tuple(call for call in calls if call is not None)


def _call(session: VicoSession, sigma: float, options: dict, x: torch.Tensor, context: torch.Tensor) -> VicoCall | None:
    chunks = len(options["cond_or_uncond"])
    names = names_of(options, session.rows)
    rows = session.arrive(sigma, options["sigmas"], names, x.detach().chunk(chunks)).rows
    if session.plan.trace.off or not session.clock.in_range(sigma):
        return None
    texts = context.chunk(chunks)
    seen = {chunk: session.remembered(row, names[chunk], texts[chunk], sigma) for chunk, row in enumerate(rows) if row}
    return VicoCall(session, chunks, seen) if seen else None
