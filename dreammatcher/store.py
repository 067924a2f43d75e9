"""A store of values that runs of a method keep for each other, within a limit of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .uncopied import Bystander


class Sized(Protocol):
    """A value that a store can hold."""

    def bytes(self) -> int: ...


@dataclass(eq=False)
class RunStore(Bystander):
    """Values by key. When it is full, what no run since :meth:`start_run` has used goes first; after that nothing more is kept,
    so that a run that needs more than there is room for finds at least the first part of it next time.

    The host deep-copies model options: a store is one object by design, so a copy is the store itself.
    """

    rows: OrderedDict = field(default_factory=OrderedDict, repr=False, init=False)  # key -> (run of its last use, value)
    held: int = field(default=0, repr=False, init=False)  # bytes in rows
    run: int = field(default=0, init=False)

    def start_run(self) -> None:
        self.run += 1

    def find(self, key: Hashable) -> Any | None:
        if key not in self.rows:
            return None
        self.rows[key] = (self.run, self.rows[key][1])
        self.rows.move_to_end(key)
        return self.rows[key][1]

    def make_room(self, size: int, room: int) -> bool:
        """Forgets values older than this run until ``size`` more bytes fit into ``room``. Returns True if they fit."""
        while self.rows and self.held + size > room:
            oldest, (used, _) = next(iter(self.rows.items()))
            if used == self.run:
                return False
            self.forget(oldest)
        return True

    def keep(self, key: Hashable, value: Sized) -> None:
        self.rows[key] = (self.run, value)
        self.held += value.bytes()

    def forget(self, key: Hashable) -> None:
        if key in self.rows:
            self.held -= self.rows.pop(key)[1].bytes()

    def bytes(self) -> int:
        return self.held
