"""Sessions on hosts of mid-2024, which have no wrappers.

There a session starts when the host encodes the prompts for a run, which it does once per run through ``extra_conds``, and lives
exactly as long as those encoded prompts: they hold the only strong reference to it, so it goes with them at the end, on an error
and on an interrupt alike. Entries are named by a number that travels with the prompt's tensors and is taken out before the UNet.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Hashable
from functools import partial

import comfy.conds
import comfy.utils
import torch

from ..model.arguments import PROMPT
from ..model.digest import standing_around
from ..model.identity import network_identity
from ..text.prompts import Prompt
from .runs import INPUT_KEY, NAMES_KEY, Begin, S, SessionHolder, Start
from .wrappers import on_evaluation_end

#: name of our number among the tensors of an encoded prompt
TAG = "dreammatcher_entry"
_numbers = itertools.count()


class Tag(comfy.conds.CONDRegular):
    """The number of a conditioning entry, int64 [1, 1], batched like a prompt and kept in main memory."""

    def process_cond(self, batch_size: int, device, **kwargs) -> Tag:
        return self._copy_with(comfy.utils.repeat_to_batch_size(self.cond, batch_size))


def install(model, holder: SessionHolder[S], begin: Begin[S]) -> None:
    """Watches ``model`` encode prompts, call the UNet and end evaluations."""
    _install_encoding(model, holder, begin)
    _install_calls(model)
    model.set_model_sampler_post_cfg_function(lambda arguments: on_evaluation_end(holder, arguments))


def _install_encoding(model, holder: SessionHolder[S], begin: Begin[S]) -> None:
    encode = model.get_model_object("extra_conds")
    last: list[str | None] = [None]  # kind of the prompt that was encoded last

    def extra_conds(**kwargs):
        encoded = encode(**kwargs)
        session, kind = holder.session(), kwargs.get("prompt_type")
        # A run's positive prompts come first and together; packs may encode others at any time while it lasts.
        if session is None or (kind == "positive" and (session.clock.evaluations_begun or last[0] != kind)):
            base = model.model
            session = begin(Start.of(base, partial(network_identity, model), base.model_sampling, kwargs.get("noise")))
            holder.watch(session)
            weakref.finalize(session, _unless_failed, session.conclude)
        last[0] = kind
        tag = encoded.setdefault(TAG, Tag(torch.tensor([[next(_numbers)]])))
        session.rows.areas = session.rows.areas or kwargs.get("area") is not None
        if kind == "positive":
            session.rows.add_positive(Prompt.of(kwargs, int(tag.cond)))
        else:
            session.rows.add_negative(int(tag.cond), None)
        if kind == "positive" or not session.rows.prompts:  # others may outlive the sampling in a pack's hands
            prompt = encoded[PROMPT]
            prompt.dreammatcher_sessions = [*getattr(prompt, "dreammatcher_sessions", ()), session]
        return encoded

    model.add_object_patch("extra_conds", standing_around(encode, extra_conds))


def _install_calls(model) -> None:
    call = model.get_model_object("apply_model")

    def apply_model(x, t, *args, **kwargs):
        tags = kwargs.pop(TAG, None)
        options = kwargs.get("transformer_options")
        if options is not None and tags is not None:
            chunks = len(options["cond_or_uncond"])
            names = tags.flatten().tolist()[::max(1, len(tags) // chunks)]  # in main memory: nothing waits
            kwargs["transformer_options"] = {**options, INPUT_KEY: x, NAMES_KEY: names}
        return call(x, t, *args, **kwargs)

    model.add_object_patch("apply_model", standing_around(call, apply_model))


def names_of(options: dict) -> list[Hashable | None]:
    """The name of each chunk's entry."""
    names, numbers = options.get(NAMES_KEY), options["cond_or_uncond"]
    return names if names is not None and len(names) == len(numbers) else [None] * len(numbers)


def _unless_failed(conclude: Callable[[], None]) -> None:
    if sys.exc_info()[0] is None:
        conclude()
