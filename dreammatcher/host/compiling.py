"""Out of torch.compile's sight."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable

import torch


def call_plainly(function: Callable, *arguments):
    """``function`` of ``arguments``."""
    return function(*arguments)


@functools.cache
def _hidden_call() -> Callable:
    return torch.compiler.disable(call_plainly)


def caller() -> Callable:
    """Calls a function: out of sight of torch.compile, which would trace our bookkeeping and compile it anew at every step.

    That needs torch._dynamo, which takes two seconds to import: whoever compiles a model has done so already.
    """
    return _hidden_call() if "torch._dynamo" in sys.modules else call_plainly


def uncompiled() -> contextlib.AbstractContextManager:
    """Inside, compiled models run as they were before, and what is compiled stays."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()
