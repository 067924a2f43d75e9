"""What the host says when it begins to sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..unet import Grid
from .session import Session


@dataclass(frozen=True, eq=False)
class Start:
    """The start of a sampling run."""

    base: torch.nn.Module  # the host's BaseModel that samples
    identity: Callable[[], str]  # of its network with everything patched into it
    sampling: object  # its noise schedule
    size: Grid | None  # of the latent; None where the host does not tell

    @staticmethod
    def of(base: torch.nn.Module, identity: Callable[[], str], sampling: object, noise: torch.Tensor | None) -> Start:
        size = tuple(noise.shape[-2:]) if torch.is_tensor(noise) and noise.ndim == 4 else None
        return Start(base, identity, sampling, size)


Begin = Callable[[Start], Session]
