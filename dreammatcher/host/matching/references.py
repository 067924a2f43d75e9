"""Features of a plan's references at the noise level of the moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ...backbones.base import Backbone
from ...matching.features import RowFeatures
from ...matching.plan import View
from .reference_pass import reference_pass


@dataclass(eq=False)
class References:
    """Features of the references: from this step, from a reference's store, or from a pass of the UNet."""

    base: Any
    backbone: Backbone
    views: tuple[View, ...]
    network: str  # identity of what the network computes, part of the feature store's keys
    room: int  # bytes that each store may fill
    _current: dict[tuple, RowFeatures] = field(default_factory=dict)  # of the current sigma, on the device

    def __call__(self, kind: str, sigma: float, like: torch.Tensor) -> list[RowFeatures]:
        """Features of every reference for a row of the guidance pair, on the device and in the precision of ``like``."""
        return [self._of(number, view, kind, sigma, like) for number, view in enumerate(self.views)]

    def _of(self, number: int, view: View, kind: str, sigma: float, like: torch.Tensor) -> RowFeatures:
        sigma = view.store.snap(sigma)
        key = (self.network, kind, sigma, view.subject)
        if (number, key) not in self._current:
            row = view.store.get(key, like.device, like.dtype)
            if row is None:
                row = reference_pass(self.base, self.backbone, view.reference, kind, view.subject, sigma, like.device)
                view.store.put(key, row, self.room)
                row = row.to(like.device, like.dtype)
            self._current = {slot: value for slot, value in self._current.items()
                             if slot[0] != number or slot[1][2] == sigma}
            self._current[number, key] = row
        return self._current[number, key]
