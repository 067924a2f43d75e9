"""Around each call of the model: what a method does before and after it, and whether its patches run there.

Do they run, and do they see the sampler's own picture? That is asked only on hosts with keyed wrappers (since late 2024). Older
ones have neither compiled graphs without guards nor wrappers around the network in which a pack could run it on a picture of its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..model.compiling import in_use, marked, uncompiled
from ..model.digest import standing_around
from ..model.options import POINTS_KEY, exchanged, options_of
from .runs import FOREIGN_KEY, installed_on, locked_on
from .session import Session

try:
    from comfy.patcher_extension import WrappersMP
except ImportError:
    WrappersMP = None

#: under which our wrappers stand
KEY = "dreammatcher"
STALE = ("torch.compile used a graph that it had made without DreamMatcher; the rest of this run is not compiled. Restart "
         "ComfyUI, or sample with DreamMatcher before any other picture, to have it compiled")
CHANGED = "another pack changes the picture in front of the UNet"


def around_calls(model, key: str, around: Callable) -> None:
    """Puts ``around(call, *arguments, **named)`` around every call, by a keyed wrapper or, on older hosts, by a patch of it."""
    if WrappersMP is not None and hasattr(model, "add_wrapper_with_key"):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, around)
        return
    call = model.get_model_object("apply_model")
    model.add_object_patch("apply_model", standing_around(call, lambda *arguments, **named: around(call, *arguments, **named)))


def with_option(call: Callable, arguments: tuple, named: dict[str, Any], key: str, value: object) -> torch.Tensor:
    """The call with one more entry in its transformer options; the host's own stay as they are."""
    options = options_of(arguments, named)
    arguments, named = exchanged(arguments, named, options, {**options, key: value})
    return call(*arguments, **named)


def around_call(executor, *arguments, **named) -> torch.Tensor:
    """Wrapper of the host's ``apply_model``."""
    options = options_of(arguments, named)
    installed = (*installed_on(options), *locked_on(options))
    sessions = [session for each in installed if (session := each.holder.session()) is not None]
    if not sessions:
        return executor(*arguments, **named)
    session = sessions[0]  # their forwards are counted alike
    arguments, named = _with_pictures_told_apart(session, arguments, named)
    if session.calls.stale:
        with uncompiled():
            return executor(*arguments, **named)
    session.calls.heard.clear()
    with marked():
        result = executor(*arguments, **named)
    if session.calls.complete() or not in_use():
        return result
    session.calls.heard.clear()
    with uncompiled():
        result = executor(*arguments, **named)
    if session.calls.complete():  # else someone leaves out this call, compiled or not
        session.calls.stale = True
        session.skip(STALE)
    return result


def _with_pictures_told_apart(session: Session, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Puts a wrapper of ours on either side of other packs' wrappers around the UNet.

    What the outer one is given is the sampler's picture. A forward in which the inner one is given another is the other pack's
    own (reference attention shows the UNet its reference) and is marked in the transformer options.
    """
    options = options_of(arguments, named)
    wrapped = options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {})
    ours = {key: value for key, value in wrapped.items() if key == POINTS_KEY}  # stays the innermost
    foreign = {key: value for key, value in wrapped.items() if key != POINTS_KEY}
    if not foreign or session.calls.changed:
        return arguments, named
    given: list[Any] = []

    def outer(executor, x, *rest, **more):
        given[:] = [x, False]
        result = executor(x, *rest, **more)
        if session.calls.forwards > begun and not given[1]:
            session.calls.changed = True
            session.skip(f"{CHANGED}; its calls are told apart by what they look like")
        return result

    def inner(executor, x, *rest, **more):
        same = x is given[0] or (x.shape == given[0].shape and bool((x == given[0]).all()))
        given[1] = given[1] or same
        options_of(rest, more)[FOREIGN_KEY] = not same
        return executor(x, *rest, **more)

    begun = session.calls.forwards
    wrappers = {**options["wrappers"], WrappersMP.DIFFUSION_MODEL: {"dreammatcher_outer": [outer], **foreign,
                                                                   "dreammatcher_inner": [inner], **ours}}
    return exchanged(arguments, named, options, {**options, "wrappers": wrappers})
