"""One training on several processes: all draw the same batch, each works on its rows, and what they found is averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


def _itself(value: torch.Tensor) -> torch.Tensor:
    return value


@dataclass(frozen=True, eq=False)
class Share:
    """The part of one process. Alone, it is everything.

    Processes draw with generators of the same state, so that a step of N processes on B pictures each is the step of one process
    on N * B pictures.
    """

    rank: int = 0
    processes: int = 1
    mean: Callable[[torch.Tensor], torch.Tensor] = _itself  # of a tensor, over the processes

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"rank: {self.rank} is outside 0..{self.processes - 1}")

    @property
    def first(self) -> bool:
        """True if this process writes the files."""
        return self.rank == 0

    def rows(self, drawn: int, parts: int = 1) -> torch.Tensor:
        """Numbers of this process's rows, int64, of a batch that was ``drawn`` for all; of each of its equal ``parts``."""
        each, count = drawn // parts, drawn // parts // self.processes
        start = self.rank * count
        return torch.cat([torch.arange(part * each + start, part * each + start + count) for part in range(parts)])

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replaces each tensor by its mean over the processes, in one exchange."""
        if self.processes == 1 or not tensors:
            return
        flat = self.mean(torch.cat([tensor.detach().flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))


ALONE = Share()
