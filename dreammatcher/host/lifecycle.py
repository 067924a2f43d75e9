"""When a sampling session starts and ends, on every host."""

from __future__ import annotations

from collections.abc import Hashable

from . import keyed, unkeyed
from .installed import SessionHolder
from .rows import RowBook
from .start import Begin


def install(model, holder: SessionHolder, begin: Begin) -> None:
    """Makes ``model`` (a clone of the user's) begin and end sessions in ``holder``."""
    if keyed.available(model):
        keyed.install(model, holder, begin)
    else:
        unkeyed.install(model, holder, begin)


def names_of(options: dict, rows: RowBook) -> list[Hashable | None]:
    """The name of the conditioning entry that each chunk of a UNet call comes from; None where the host does not say."""
    return keyed.names_of(options, rows) if keyed.LISTS_KEY in options else unkeyed.names_of(options)
