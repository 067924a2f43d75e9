"""Latents beyond what main memory should hold, in files that are mapped: the system reads them as they are drawn."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .data import Prepared

log = logging.getLogger(__name__)

#: bytes of latents that stay in main memory: those of 16,000 pictures at 512 pixels
ROOM = 1 << 30


@dataclass(eq=False)
class Shelf:
    """A folder for latents while one training lasts. Their numbers are those that were put there, bit for bit."""

    folder: Path
    room: int = ROOM
    tell: Callable[[str], None] = log.warning  # of a disk that cannot be written to
    files: list[Path] = field(default_factory=list)
    held: int = 0  # bytes that are in main memory
    size: int = 0  # bytes in the files
    full: bool = False  # nothing more can be written

    def shelved(self, examples: Iterable[Prepared]) -> list[Prepared]:
        """The examples. Of all that were ever given, at most ``room`` bytes of latents are in main memory.

        Where the disk refuses, all stay there.
        """
        kept: list[Prepared] = []
        fresh: list[Prepared] = []
        waiting = 0
        for example in examples:
            fresh.append(example)
            waiting += example.latents.nbytes
            if self.held + waiting > self.room and not self.full:
                kept += self._written(fresh)
                fresh, waiting = [], 0
        self.held += waiting
        return [*kept, *fresh]

    def _written(self, examples: list[Prepared]) -> list[Prepared]:
        path = self.folder / f"{uuid.uuid4().hex}.latents"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.files.append(path)
            with path.open("wb") as file:
                for one in examples:
                    file.write(one.latents.contiguous().numpy().data)
            count = sum(one.latents.numel() for one in examples)
            mapped = torch.from_file(str(path), size=count, dtype=torch.float32)
        except (OSError, RuntimeError) as error:
            self.full = True
            self.tell(f"latents cannot be kept in {self.folder} ({error}); they stay in main memory")
            return examples
        self.size += mapped.nbytes
        parts = mapped.split([one.latents.numel() for one in examples])
        return [replace(one, latents=part.view_as(one.latents)) for one, part in zip(examples, parts, strict=True)]

    def close(self) -> None:
        """Removes the files; a system that keeps a mapped file leaves that to the host, which empties its temporary folder."""
        for path in self.files:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.info("DreamMatcher: %s cannot be removed yet (%s)", path, error)
        self.files.clear()
