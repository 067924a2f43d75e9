"""What a pass of the UNet over the reference leaves behind, and where it is kept."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch

#: which row of the guidance pair a feature belongs to
COND, UNCOND = "cond", "uncond"

#: a self-attention layer: (block kind, block number, index in the block)
Layer = tuple[str, int, int]


@dataclass(frozen=True)
class RowFeatures:
    """One row (cond or uncond) of one pass."""

    levels: tuple[torch.Tensor, ...]  # decoder features [1, C_l, H_l, W_l], coarse to fine
    hidden: dict[Layer, torch.Tensor]  # inputs of self-attention [1, N, C]
    subject: torch.Tensor | None  # soft foreground [1, 1, h, w] at the maps' own size; None on the uncond row

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> RowFeatures:
        move = lambda tensor: tensor.to(device=device, dtype=dtype)  # noqa: E731
        return RowFeatures(tuple(map(move, self.levels)), {layer: move(x) for layer, x in self.hidden.items()},
                           None if self.subject is None else move(self.subject))

    def bytes(self) -> int:
        tensors = [*self.levels, *self.hidden.values(), *([] if self.subject is None else [self.subject])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class FeatureOptions:
    """How features are made and kept."""

    pca: int | None = 256  # rank per level; None keeps the centred features
    device: str = "cpu"  # "cpu" or "model": where the store lives
    dtype: torch.dtype | None = None  # storage precision; None keeps the model's own

    def __post_init__(self) -> None:
        if self.pca is not None and self.pca < 1:
            raise ValueError(f"pca: {self.pca} is not a positive rank; use 0 in the node for no projection")
        if self.device not in ("cpu", "model"):
            raise ValueError(f"storage device: {self.device!r} is neither 'cpu' nor 'model'")


@dataclass(eq=False)
class FeatureStore:
    """Features by (weights, row, sigma), shared by every run of one reference; the oldest go when it is full.

    The host deep-copies model options: the store is one object by design, so a copy is the store itself.
    """

    options: FeatureOptions = FeatureOptions()
    capacity: int = 2 << 30  # bytes
    prepared: bool = False  # made ahead of sampling at every stored sigma; calls snap to the nearest of them
    rows: OrderedDict = field(default_factory=OrderedDict, repr=False)
    held: int = field(default=0, repr=False)  # bytes in rows

    def __deepcopy__(self, memo: dict) -> FeatureStore:
        return self

    def get(self, key: tuple, device: torch.device, dtype: torch.dtype) -> RowFeatures | None:
        if key not in self.rows:
            return None
        self.rows.move_to_end(key)
        return self.rows[key].to(device, dtype)

    def put(self, key: tuple, row: RowFeatures) -> None:
        device = "cpu" if self.options.device == "cpu" else row.levels[0].device
        if key in self.rows:
            self.held -= self.rows.pop(key).bytes()
        self.rows[key] = row.to(device, self.options.dtype)
        self.held += self.rows[key].bytes()
        while len(self.rows) > 1 and self.held > self.capacity:
            self.held -= self.rows.popitem(last=False)[1].bytes()

    def bytes(self) -> int:
        return self.held
