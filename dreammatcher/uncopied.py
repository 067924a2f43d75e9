"""Bases of objects that are one by design: the host deep-copies model options, and what stands in them must not be copied."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T", bound="Uncopied")


class Uncopied:
    """A copy of it is itself."""

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        return self


class Bystander(Uncopied):
    """It changes nothing of what a model computes: two models that differ in it alone are alike."""

    def content_identity(self) -> None:
        """Nothing is compared."""
