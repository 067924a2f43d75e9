"""How much memory a pass keeps for its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class Kept:
    """Storages that autograd holds, each counted once. They are held here too, so that no other one gets their address."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def beside(self, *known: Iterable[torch.Tensor]) -> int:
        """Bytes but for the storages of tensors that are ``known``, as the model's weights are."""
        there = {tensor.untyped_storage().data_ptr() for tensors in known for tensor in tensors}
        return sum(storage.nbytes() for place, storage in self.storages.items() if place not in there)


@contextmanager
def kept_for_the_gradient() -> Iterator[Kept]:
    """Notes what autograd keeps of the passes inside."""
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
        yield kept
