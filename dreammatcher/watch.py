"""Observers of a model's cross-attention during a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from .backbones.base import Site


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One cross-attention of the UNet in the middle of a call."""

    layer: Site  # which it is
    queries: torch.Tensor  # [B, H, N, d]
    context: torch.Tensor  # [B, T, D], the prompt that keys are made of
    keys: Callable[[torch.Tensor], torch.Tensor]  # of a prompt [B, T, D] -> [B, H, T, d]


class Watch(Protocol):
    """Sees every cross-attention of a call."""

    collected: list[torch.Tensor]  # gradients reach it, whether activations are kept or made again

    def __call__(self, layer: AttentionLayer) -> None:
        """Sees one layer, and appends to ``collected`` what it takes from it. It may be called again for the gradient."""
