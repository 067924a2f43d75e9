"""Values that several layers, rows and chunks ask for, made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")


class Memo:
    """Keeps one value per key for as long as what it was made from stays the same objects."""

    def __init__(self) -> None:
        self._kept: dict[tuple, tuple[tuple, Any]] = {}

    def get(self, key: tuple, sources: tuple, make: Callable[[], Made]) -> Made:
        """The value of ``key``, made anew when one of ``sources`` is another object than last time."""
        kept = self._kept.get(key)
        if kept is None or len(kept[0]) != len(sources) or any(one is not other for one, other in zip(kept[0], sources)):
            kept = self._kept[key] = (sources, make())
        return kept[1]
