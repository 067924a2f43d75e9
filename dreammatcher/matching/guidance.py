"""Semantic matching guidance (DreamMatcher, Sec. 4.4; Eq. 9-10): the clean estimate is led towards the warped reference.

Clean estimates are in the model's latent scale, ``x = x0 + sigma * noise``. Three ways, all seen to bring the masked
distance down (the paper's Eq. 10 taken literally, with the full gradient, pushes away from the reference):

* ``paper`` follows the official code: the gradient flows through the network's prediction only, attention held constant.
* ``fast`` needs no gradient: the estimate itself moves a share of the way.
* ``inside`` is ``fast``, but for the cells at the subject's edge, from which colour would spill around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch

from .settings import BEST_START, check_span

INSIDE, FAST, PAPER = "inside", "fast", "paper"
#: the official code's lambda_g, what ``weight`` 1 means in mode ``paper``
PAPER_LAMBDA = 50.0
#: cells of the 64x64 latents that this lambda was chosen for
PAPER_CELLS = 64 * 64
#: share of the way that ``weight`` 1 closes at each step in mode ``fast``
FAST_SHARE = 0.2


@dataclass(frozen=True)
class GuidanceSettings:
    """Settings of matching guidance: its strength and its share of the schedule."""

    weight: float = 1.0
    start: float = 0.08  # share of the sampling schedule, 0..1
    end: float = 1.0
    mode: str = FAST

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 20:
            raise ValueError(f"weight: {self.weight} is outside 0..20; 1 is the default")
        check_span(self.start, self.end)
        if self.mode not in (INSIDE, FAST, PAPER):
            raise ValueError(f"mode: {self.mode!r} is none of {INSIDE!r}, {FAST!r} and {PAPER!r}")


#: guidance of new nodes
BEST_GUIDANCE = GuidanceSettings(weight=1.5, start=BEST_START, mode=INSIDE)


def masked_distance(clean: torch.Tensor, warped: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """Root mean square of M' . (x0 - W(z0_X; F)) per picture, [B]. ``trust`` [B, 1, H, W] is M'."""
    missing = (trust * (clean - warped)).pow(2).sum((1, 2, 3))
    return (missing / (trust.pow(2).sum((1, 2, 3)) * clean.shape[1]).clamp_min(1e-12)).sqrt()


def lead(clean: torch.Tensor, warped: torch.Tensor, trust: torch.Tensor, weight: float) -> torch.Tensor:
    """Mode ``fast``: x0 - w . M' . (x0 - W(z0_X; F)), w = 0.2 x ``weight``, at most the whole way. All [B, C, H, W]."""
    share = (trust * (FAST_SHARE * weight)).clamp(0, 1).to(clean.dtype)
    return torch.where(share > 0, torch.lerp(clean, warped.to(clean.dtype), share), clean)


def slope(clean: torch.Tensor, warped: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """Derivative of Eq. 9's loss by the clean estimate of one row, [B, C, H, W].

    The official loss is sum (M' W - M' x0)^2 / sum(M' over both rows and all channels); M' comes out squared. Each row is
    normalised as if its pair had the same trust, so that rows may come in calls of their own.
    """
    area = 2 * trust.sum((1, 2, 3), keepdim=True) * clean.shape[1]
    return 2 * trust.pow(2) * (clean - warped) / area.clamp_min(1e-6)


def correction(gradient: torch.Tensor, sigma: float, weight: float) -> torch.Tensor:
    """The correction that mode ``paper`` adds to the clean estimate, [B, C, H, W].

    ``gradient`` is the loss's derivative by x through the prediction alone. The code's rule for the latent
    z = x / sqrt(1 + sigma^2), eps - lambda sqrt(1 - abar) dg/dz, reads x0 + lambda sigma^2 dg/dx here. The loss is a mean
    over cells, so each cell's slope shrinks as a picture grows: lambda grows with the cells, and a weight means the same at
    every size.
    """
    cells = gradient.shape[-2] * gradient.shape[-1]
    return weight * PAPER_LAMBDA * (cells / PAPER_CELLS) * sigma * sigma * gradient


def shortened(
    change: torch.Tensor, clean: torch.Tensor, goals: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each picture's change [B, C, H, W], cut to a useful length, and whether it is finite, bool [B].

    ``goals``: warped reference and M' of every subject. A step longer than twice the masked distance cannot come nearer, and
    few steps at high noise levels make such: it becomes as long as the distance. One that is not finite becomes zero.
    """
    flat = (1, 2, 3)
    length = change.pow(2).sum(flat, keepdim=True).sqrt()
    squares = ((trust * (clean - warped)).pow(2).sum(flat, keepdim=True) for warped, trust in goals)
    distance = reduce(torch.add, squares).sqrt()
    finite = torch.isfinite(length)
    scale = torch.where(length > 2 * distance, distance / length.clamp_min(1e-30), torch.ones_like(length))
    return torch.where(finite, change * scale, torch.zeros_like(change)), finite.flatten()
