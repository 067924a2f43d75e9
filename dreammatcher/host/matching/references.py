"""Features of a plan's references at the noise level of the moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ...backbones.base import Backbone, Site
from ...matching.features import FeatureKey, RowFeatures
from ...matching.foreground import painted_cells
from ...matching.plan import View
from ...sizes import spatial_size
from .reference_foreground import finest_site, foreground_of
from .reference_pass import reference_pass


@dataclass(eq=False)
class References:
    """Features of the references: from this step, from a reference's store, or from a pass of the UNet."""

    base: Any
    backbone: Backbone
    views: tuple[View, ...]
    network: str  # identity of what the network computes, part of the feature store's keys
    sites: frozenset[Site]  # whose hidden inputs are asked for
    room: int  # bytes that each store may fill
    maps: bool = True  # the pass reads where the subject's words look; a foreground that is carried over asks for none
    _foregrounds: dict[int, torch.Tensor] = field(default_factory=dict)
    _current: dict[tuple[int, FeatureKey], RowFeatures] = field(default_factory=dict)  # of the current sigma, on the device

    def __call__(self, kind: str, sigma: float, like: torch.Tensor) -> list[RowFeatures]:
        """Features of every reference for a row of the guidance pair, on the device and in the precision of ``like``."""
        return [self._of(number, view, kind, sigma, like) for number, view in enumerate(self.views)]

    def foreground(self, number: int, device: torch.device) -> torch.Tensor:
        """The foreground [1, 1, H, W] of one reference, painted or found, made when it is first asked for."""
        if number not in self._foregrounds:
            view, size = self.views[number], spatial_size(self.views[number].reference.latent)
            if view.mask is not None:
                made = painted_cells(view.mask.to(device), self.backbone.grid(finest_site(self.backbone, size), size))
            else:
                assert view.subject is not None, "a foreground is carried over from a reference only where its subject is known"
                made = foreground_of(self.base, self.backbone, view.reference, view.subject, view.store, self.network, device)
            self._foregrounds[number] = made
        return self._foregrounds[number]

    def _of(self, number: int, view: View, kind: str, sigma: float, like: torch.Tensor) -> RowFeatures:
        sigma, subject = view.store.snap(sigma), view.subject if self.maps else None
        key = FeatureKey(self.network, kind, sigma, subject, self.sites)
        if (number, key) not in self._current:
            row = view.store.get(key, like.device, like.dtype)
            if row is None:
                row = reference_pass(self.base, self.backbone, view.reference, kind, subject, sigma, like.device, self.sites)
                view.store.put(key, row, self.room)
                row = row.to(like.device, like.dtype)
            self._current = {slot: value for slot, value in self._current.items()
                             if slot[0] != number or slot[1].sigma == sigma}
            self._current[number, key] = row
        return self._current[number, key]
