"""When a sampling session starts and ends, on every host."""

from __future__ import annotations

from collections.abc import Hashable

from . import mid_2024, wrappers
from .rows import RowBook
from .runs import Begin, S, SessionHolder


def install(model, holder: SessionHolder[S], begin: Begin[S]) -> None:
    """Makes ``model`` (a clone of the user's) begin and end sessions in ``holder``."""
    if wrappers.available(model):
        wrappers.install(model, holder, begin)
    else:
        mid_2024.install(model, holder, begin)


def names_of(options: dict, rows: RowBook) -> list[Hashable | None]:
    """The name of the conditioning entry that each chunk of a UNet call comes from; None where the host does not say."""
    return wrappers.names_of(options, rows) if wrappers.LISTS_KEY in options else mid_2024.names_of(options)
