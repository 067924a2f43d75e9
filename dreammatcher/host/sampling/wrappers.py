"""Sessions on hosts with keyed wrappers (since late 2024), which say when sampling and every evaluation begin and end.

Such hosts also name the conditioning entry of every chunk of a call by a uuid. An entry that mirrors another list's for the sake
of its area carries that one's uuid, so that a name is the pair of list and uuid.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch

from ..text.prompts import Prompt
from .model_calls import KEY, WrappersMP, around_call, options_of
from .rows import RowBook
from .runs import INPUT_KEY, Begin, S, SessionHolder, Start

#: in the transformer options of a call: the list of the guider that each of the host's row numbers stands for
LISTS_KEY = "dreammatcher_lists"
POSITIVE = "positive"


def available(model) -> bool:
    return WrappersMP is not None and hasattr(model, "add_wrapper_with_key")


def install(model, holder: SessionHolder[S], begin: Begin[S]) -> None:
    """Wraps sampling, evaluations and calls of ``model``."""
    from ..model.identity import network_identity  # not above: names of chunks are read without a host too

    def around_sampling(executor, noise, *args, **kwargs):
        patcher = executor.class_obj.model_patcher
        outer = holder.session()  # a sampler inside a sampler
        identity = partial(network_identity, patcher, _hooks_of(executor.class_obj.conds))
        session = begin(Start.of(patcher.model, identity, patcher.get_model_object("model_sampling"), noise))
        holder.hold(session)
        try:
            result = executor(noise, *args, **kwargs)
            session.conclude()
            return result
        finally:
            holder.release()
            if outer is not None:
                holder.hold(outer)

    def read_entries(executor, guider, *args, **kwargs):
        session = holder.session()
        if session is not None:
            _read_entries(session.rows, guider.conds)
        return executor(guider, *args, **kwargs)

    def around_evaluation(executor, *args, **kwargs):
        session = holder.session()
        if session is not None:
            session.announce_evaluation()
        return executor(*args, **kwargs)

    def around_batch(executor, base, conds, x, timestep, model_options):
        session = holder.session()
        if session is not None:
            if "multigpu_clones" in model_options:  # cond and uncond in threads, on a device each
                session.note("a run with DreamMatcher samples on one GPU: both rows of the guidance pair take part in a match")
                model_options = {name: value for name, value in model_options.items() if name != "multigpu_clones"}
            options = {**model_options.get("transformer_options", {}), LISTS_KEY: _lists_of(conds, session.rows.lists)}
            model_options = {**model_options, "transformer_options": options}
        return executor(base, conds, x, timestep, model_options)

    key = f"{KEY}_{uuid.uuid4().hex}"
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, around_sampling)
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, read_entries)
    if hasattr(WrappersMP, "PREDICT_NOISE"):
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, around_evaluation)
    else:
        model.set_model_sampler_post_cfg_function(lambda arguments: on_evaluation_end(holder, arguments))
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, around_batch)
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)  # one for all plans
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _around_call)


def on_evaluation_end(holder: SessionHolder[Any], arguments: dict) -> torch.Tensor:
    """An evaluation has come to its end, but for what packs do behind it."""
    session = holder.session()
    if session is not None:
        session.clock.evaluation_ended = True
    return arguments["denoised"]


def _hooks_of(conds: dict[str, list[dict] | None]) -> list[Any]:
    """Groups of hooks that a run's prompts bring."""
    return [entry["hooks"] for entries in conds.values() for entry in entries or () if entry.get("hooks") is not None]


def _read_entries(rows: RowBook, conds: dict[str, list[dict] | None]) -> None:
    first = POSITIVE if POSITIVE in conds else next(iter(conds), None)
    for name, entries in conds.items():
        for entry in entries or ():
            rows.lists[id(entry)] = name
            if name == first:
                rows.add_positive(Prompt.of(entry, (name, entry.get("uuid"))))
            else:
                rows.add_negative((name, entry.get("uuid")), entry.get("area"))
            rows.areas = rows.areas or entry.get("area") is not None


def _lists_of(conds: list[list[dict] | None], lists: dict[int, str]) -> tuple[str | None, ...]:
    """The guider's list that each element of a batch's ``conds`` is; None for one that is none of them."""
    return tuple(next((lists[id(entry)] for entry in entries or () if id(entry) in lists), None) for entries in conds)


def names_of(options: dict, rows: RowBook) -> list[Hashable | None]:
    """The name of each chunk's entry.

    Where a pack regrouped the batch without regrouping the uuids, only a list that holds one prompt tells whose a chunk is.
    """
    numbers, uuids, lists = options["cond_or_uncond"], options.get("uuids") or (), options.get(LISTS_KEY, ())
    names = [lists[number] if number < len(lists) else None for number in numbers]
    if len(uuids) != len(numbers):
        return [_only_entry(rows, name) for name in names]
    positive = {entry[1]: entry for entry in _entries(rows)}
    return [positive[entry] if name is None and entry in positive else (name, entry) for name, entry in zip(names, uuids)]


def _entries(rows: RowBook) -> list[tuple]:
    """The names of all positive entries: list and uuid."""
    return [entry for prompt in rows.prompts for entry in prompt.names if isinstance(entry, tuple)]


def _only_entry(rows: RowBook, name: str | None) -> Hashable | None:
    positive = [entry for entry in _entries(rows) if entry[0] == name]
    negative = [entry for entry in rows.negatives if isinstance(entry, tuple) and entry[0] == name]
    if positive:
        return positive[0] if len(rows.prompts) == 1 else None
    return negative[0] if negative and not rows.areas else None


def _around_call(executor, *arguments, **named):
    options = options_of(arguments, named)
    if options:
        options[INPUT_KEY] = arguments[0]
    return around_call(executor, *arguments, **named)
