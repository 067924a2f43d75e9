"""A plan on a clone of the user's model, and when its sampling sessions start and end, on every host."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import TypeVar

from comfy.model_patcher import ModelPatcher

from . import mid_2024, wrappers
from .rows import RowBook
from .runs import Begin, Installed, P, S, SessionHolder, Start

M = TypeVar("M", bound=ModelPatcher)


def install_plan(model: M, plan: P, key: str, begin: Callable[[P, Start], S],
                 first: Callable[[M], None] = lambda clone: None) -> tuple[M, Installed[P, S]]:
    """A clone of ``model`` with ``plan``, and the plan as it is installed there.

    It stands behind the plans that are under ``key`` in the transformer options. ``begin`` makes its sessions; ``first`` is given
    the clone if no plan stands there yet.
    """
    clone, installed = model.clone(), Installed(plan, SessionHolder[S]())
    options = clone.model_options["transformer_options"] = dict(clone.model_options["transformer_options"])
    options["patches"] = dict(options.get("patches", {}))
    if key not in options:
        first(clone)
    options[key] = (*options.get(key, ()), installed)
    install(clone, installed.holder, partial(begin, plan))
    return clone, installed


def install(model, holder: SessionHolder[S], begin: Begin[S]) -> None:
    """Makes ``model`` (a clone of the user's) begin and end sessions in ``holder``."""
    if wrappers.available(model):
        wrappers.install(model, holder, begin)
    else:
        mid_2024.install(model, holder, begin)


def names_of(options: dict, rows: RowBook) -> list[Hashable | None]:
    """The name of the conditioning entry that each chunk of a UNet call comes from; None where the host does not say."""
    return wrappers.names_of(options, rows) if wrappers.LISTS_KEY in options else mid_2024.names_of(options)
