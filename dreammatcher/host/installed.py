"""The plans that are installed on a model, and who holds their sampling sessions."""

from __future__ import annotations

from dataclasses import dataclass

from ..matching.plan import Plan

#: where a model's plans stand in its transformer options, for patches of other plans and for guidance
PLANS_KEY = "dreammatcher"


@dataclass(frozen=True, eq=False)
class Seat:
    """A plan on a model, and who holds its session."""

    plan: Plan
    holder: object  # lifecycle.SessionHolder

    def __deepcopy__(self, memo: dict) -> Seat:
        return self


def seats_of(options: dict) -> tuple[Seat, ...]:
    """Every plan in some transformer options, in the order they were applied."""
    return options.get(PLANS_KEY, ())
