"""When a sampling run starts and ends.

Hosts with keyed wrappers (since late 2024) say so themselves: the run is made and released around their outer sampling
function. Older hosts have no such hook. There a run starts when the host encodes the prompts for it, which it does once
per run through ``extra_conds``, and lives exactly as long as those encoded prompts: they hold the only strong reference
to it, so it goes with them at the end, on an error and on an interrupt alike.
"""

from __future__ import annotations

import sys
import uuid
import weakref
from collections.abc import Callable

import torch

from ..matching.plan import Plan
from ..matching.settings import Trace
from .notes import tell
from .prompts import Prompt, joined
from .session import Session
from .verify import WrappersMP, around_call

KEY = "dreammatcher"
#: (plan, BaseModel that samples, identity of its weights, its noise schedule, noise of the run or None) -> a fresh session
Begin = Callable[[Plan, torch.nn.Module, object, object, torch.Tensor | None], Session]


class SessionHolder:
    """The current run of one patched model, or nothing between runs. A copy of a holder is the holder itself."""

    def __init__(self) -> None:
        self._session = lambda: None

    def __deepcopy__(self, memo: dict) -> SessionHolder:
        return self

    def session(self) -> Session | None:
        return self._session()

    def hold(self, session: Session) -> None:
        self._session = lambda: session

    def watch(self, session: Session) -> None:
        self._session = weakref.ref(session)

    def release(self) -> None:
        self._session = lambda: None


def conclude(trace: Trace) -> None:
    """At the end of a run: one that took nothing of the reference must not look like one that did."""
    if not trace.off and (reason := trace.nothing()):
        tell(f"nothing was matched in this run: {reason}")


def install(model, plan: Plan, holder: SessionHolder, begin: Begin) -> None:
    """Makes ``model`` (a clone of the user's) begin and end runs in ``holder``."""
    if WrappersMP is not None and hasattr(model, "add_wrapper_with_key"):
        _install_wrapper(model, plan, holder, begin)
    else:
        _install_prompt_watch(model, plan, holder, begin)


def _install_wrapper(model, plan: Plan, holder: SessionHolder, begin: Begin) -> None:
    def around_sampling(executor, noise, *args, **kwargs):
        model = executor.class_obj.model_patcher
        outer = holder.session()  # a sampler inside a sampler
        holder.hold(begin(plan, model.model, model.patches_uuid, model.get_model_object("model_sampling"), noise))
        try:
            result = executor(noise, *args, **kwargs)
            conclude(plan.trace)
            return result
        finally:
            holder.release()
            if outer is not None:
                holder.hold(outer)

    def on_one_device(executor, model, conds, x, timestep, model_options):
        session = holder.session()
        if session is not None and "multigpu_clones" in model_options:  # cond and uncond in threads, on a device each
            session.note("a run with DreamMatcher samples on one GPU: both rows of the guidance pair take part in a match")
            model_options = {name: value for name, value in model_options.items() if name != "multigpu_clones"}
        return executor(model, conds, x, timestep, model_options)

    def read_prompts(executor, guider, *args, **kwargs):
        session = holder.session()
        if session is not None:
            entries = [entry for entries in guider.conds.values() for entry in entries or ()]
            session.rows.areas = any(entry.get("area") is not None for entry in entries)
            session.rows.prompts = joined([
                Prompt.of(entry, entry["model_conds"]["c_crossattn"].cond) for entry in guider.conds.get("positive", ())
                if "c_crossattn" in entry.get("model_conds", ())])
        return executor(guider, *args, **kwargs)

    key = f"{KEY}_{uuid.uuid4().hex}"
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, around_sampling)
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, read_prompts)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, on_one_device)
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)  # one for all plans
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, around_call)


def _install_prompt_watch(model, plan: Plan, holder: SessionHolder, begin: Begin) -> None:
    previous = model.get_model_object("extra_conds")

    def extra_conds(**kwargs):
        encoded = previous(**kwargs)
        session, kind = holder.session(), kwargs.get("prompt_type")
        # A run's positive prompts come first and together; packs may encode others at any time while it lasts.
        if session is None or (kind == "positive" and (session.seen.levels or session.rows.last_prompt_type != kind)):
            base = plan.base
            session = begin(plan, base, weights_identity(base.diffusion_model), base.model_sampling, kwargs.get("noise"))
            holder.watch(session)
            weakref.finalize(session, _conclude_unless_failed, plan.trace)
        session.rows.last_prompt_type = kind
        session.rows.areas = session.rows.areas or kwargs.get("area") is not None
        prompt = encoded["c_crossattn"]
        if kind == "positive":
            session.rows.prompts = joined([*session.rows.prompts, Prompt.of(kwargs, prompt.cond)])
        if kind == "positive" or not session.rows.prompts:  # others may outlive the sampling in a pack's hands
            prompt.dreammatcher_runs = [*getattr(prompt, "dreammatcher_runs", ()), session]
        return encoded

    model.add_object_patch("extra_conds", extra_conds)


def _conclude_unless_failed(trace: Trace) -> None:
    if sys.exc_info()[0] is None:
        conclude(trace)


def weights_identity(unet: torch.nn.Module) -> tuple:
    """Changes when any weight patch changes: a few values of every parameter and the identity of deferred patches."""
    samples = [value.detach().flatten()[:: max(1, value.numel() // 8)][:8].float().sum() for value in unet.parameters()]
    deferred = tuple(id(module.weight_function) for module in unet.modules() if getattr(module, "weight_function", None))
    return tuple(torch.stack(samples).tolist()), deferred
