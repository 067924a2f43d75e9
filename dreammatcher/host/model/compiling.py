"""Keeps our patches and torch.compile out of each other's way.

Newer hosts compile a UNet without guards on its transformer options, where every patch stands: what was compiled of the plain
model would be used for the matched one as well. Graphs are also guarded by the stack of function modes, so :func:`marked` makes
the two differ there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Matched(TorchFunctionMode):
    """Changes nothing. Being there tells the graphs of matched calls from all others."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        return function(*arguments, **(named or {}))


def in_use() -> bool:
    """True if anything may have been compiled in this process."""
    return "torch._dynamo" in sys.modules


def _call(function: Callable, *arguments):
    return function(*arguments)


_hidden = _call


def hide() -> None:
    """Makes :func:`hidden` keep what it calls out of torch.compile's sight, which would trace our bookkeeping.

    That needs torch._dynamo, which takes two seconds to import: whoever compiles a model has done so already.
    """
    global _hidden
    if _hidden is _call and in_use():
        _hidden = torch.compiler.disable(_call)


def hidden(function: Callable, *arguments) -> Any:
    """``function`` of ``arguments``, which torch.compile neither traces nor remembers."""
    return _hidden(function, *arguments)


def marked() -> contextlib.AbstractContextManager:
    """Inside, torch.compile uses no graph that was made outside, nor the other way round."""
    return Matched() if in_use() else contextlib.nullcontext()


def uncompiled() -> contextlib.AbstractContextManager:
    """Inside, compiled models run as they were before, and what is compiled stays."""
    if in_use() and hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()
