"""Ranges of the numbers that a person chooses."""

from __future__ import annotations


def check(name: str, value: float, low: float, high: float, why: str = "") -> None:
    """Raises ValueError, naming the input and its range, when ``value`` is outside."""
    if not low <= value <= high:
        if why:
            raise ValueError(f"{name}: {value} is outside {low:g}..{high:g}; {why}")
        raise ValueError(f"{name}: {value} is outside {low:g}..{high:g}")
