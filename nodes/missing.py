"""The error of a node whose input has no value."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def says_what_is_missing(kind: type[Any]) -> None:
    """Makes a node's method name the inputs that it was not given.

    Hosts before August 2024 do not check what comes to an optional input of a later node.
    """
    name: str = getattr(kind, "RUNS", kind.FUNCTION)
    run = getattr(kind, name)
    needed = [parameter.name for parameter in list(inspect.signature(run).parameters.values())[1:]
              if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @functools.wraps(run)
    def checked(self, *values, **given):
        lacking = [each for each in needed[len(values):] if each not in given]
        if lacking:
            raise ValueError(f"{', '.join(lacking)}: nothing is connected; connect it, and if the node in front of {kind.TITLE} "
                             "is bypassed or muted, switch that on again, or bypass this one too")
        return run(self, *values, **given)

    setattr(kind, name, checked)
