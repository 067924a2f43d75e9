"""Around every call of the UNet: what a method that looks at more than one layer does before and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .digest import standing_around
from .verify import WrappersMP, options_of


def around_calls(model, key: str, around: Callable) -> None:
    """Puts ``around(call, *arguments, **named)`` around every call, by a keyed wrapper or, on older hosts, by a patch of it."""
    if WrappersMP is not None and hasattr(model, "add_wrapper_with_key"):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, around)
        return
    call = model.get_model_object("apply_model")
    model.add_object_patch("apply_model", standing_around(call, lambda *arguments, **named: around(call, *arguments, **named)))


def context_of(arguments: tuple, named: dict[str, Any]) -> torch.Tensor | None:
    """The encoded prompts among the arguments of the host's ``apply_model``: x, t, c_concat, c_crossattn and others."""
    return named["c_crossattn"] if "c_crossattn" in named else next(iter(arguments[3:4]), None)


def with_option(call: Callable, arguments: tuple, named: dict[str, Any], key: str, value: object) -> torch.Tensor:
    """The call with one more entry in its transformer options; the host's own stay as they are."""
    options = options_of(arguments, named)
    own = {**options, key: value}
    arguments = tuple(own if one is options else one for one in arguments)
    return call(*arguments, **{name: own if one is options else one for name, one in named.items()})
