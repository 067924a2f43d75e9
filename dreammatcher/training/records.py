"""The course of a training as a table (CSV), and as events of TensorBoard where that is installed. Written while it trains."""

from __future__ import annotations

import csv
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..files import atomic_write
from .loop import Training
from .settings import BOARD, NO_RECORDS

COLUMNS = ("step", "loss", "rate", "gradient_norm", "steps_per_second")
TABLE, EVENTS = "log.csv", "tensorboard"


def check_records(kind: str) -> None:
    """Raises ValueError, naming the package, for events of TensorBoard where it is not installed."""
    if kind == BOARD and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("records: TensorBoard's events need the package tensorboard, which is not installed; install it into "
                         "ComfyUI's environment, or choose CSV")


class Records:
    """Writes a row after each step into a folder. Where that fails, ``warn`` is told once, and the training goes on.

    A run that goes on from a step keeps the rows up to it, and replaces later ones, which another attempt has written.
    """

    def __init__(self, folder: Path, kind: str, warn: Callable[[str], None]):
        self.folder, self.kind, self.warn = folder, kind, warn
        self.table: IO[str] | None = None
        self.board: Any = None
        self.last = time.monotonic()

    def after_step(self, training: Training) -> None:
        if self.kind == NO_RECORDS:
            return
        took = time.monotonic() - self.last
        row = (training.step, training.losses[-1], training.rate, training.norm, 1 / max(took, 1e-9))
        try:
            if self.table is None:
                self._open(training.step - 1)
            assert self.table is not None
            self.table.write(",".join(f"{value:.7g}" for value in row) + "\n")
            self.table.flush()
            for name, value in zip(COLUMNS[1:], row[1:]) if self.board is not None else ():
                self.board.add_scalar(name, value, training.step)
        except OSError as error:
            self.warn(f"the records of this training cannot be written to {self.folder} ({error}); it goes "
                      "on without them")
            self.close()
            self.kind = NO_RECORDS
        self.last = time.monotonic()

    def resume(self) -> None:
        """Leaves out of the steps' times what was done since the last one, as samples and files."""
        self.last = time.monotonic()

    def close(self) -> None:
        for one in (self.table, self.board):
            if one is not None:
                one.close()
        self.table = self.board = None

    def _open(self, step: int) -> None:
        path = self.folder / TABLE
        rows = [row for row in _rows(path) if int(float(row[0])) <= step]
        with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        self.table = path.open("a", newline="", encoding="utf-8")
        if self.kind == BOARD:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder / EVENTS), purge_step=step + 1, flush_secs=10)


def _rows(path: Path) -> list[list[str]]:
    """The whole rows of a table below its head; none where there is no table."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in list(csv.reader(file))[1:] if len(row) == len(COLUMNS)]
