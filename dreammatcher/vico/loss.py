"""The regularisation that keeps the placeholder's attention on the subject (Sec. 3.4, Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: weight of the regularisation in the loss
WEIGHT = 5e-4


def alignment(placeholder: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two attention maps [B, N] of the reference, each divided by its maximum.

    The end token stands for the whole prompt and gets no gradient; the placeholder's gradient includes its maximum.
    """
    wanted = end.detach()
    return (placeholder / placeholder.amax(-1, keepdim=True) - wanted / wanted.amax(-1, keepdim=True)).square().mean()


def regularisation(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The sum over the sites of :func:`alignment`, given each site's maps of placeholder and end token."""
    return torch.stack([alignment(placeholder, end) for placeholder, end in pairs]).sum()
