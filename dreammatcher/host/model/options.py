"""The host's transformer options among the arguments of a call."""

from __future__ import annotations

from typing import Any

#: the points of methods that are at work in a transformer, and the name of the wrapper that begins them
POINTS_KEY = "dreammatcher_points"


def options_of(arguments: tuple, named: dict[str, Any]) -> dict[str, Any]:
    """The transformer options among the arguments of a network's call, whatever their place."""
    return next((value for value in (*arguments, named.get("transformer_options")) if is_options(value)), {})


def is_options(value: object) -> bool:
    return isinstance(value, dict) and "cond_or_uncond" in value


def exchanged(arguments: tuple, named: dict[str, Any], options: dict[str, Any],
              changed: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments with ``changed`` in the place of ``options``."""
    return (tuple(changed if one is options else one for one in arguments),
            {name: changed if one is options else one for name, one in named.items()})
