"""An edit model from a trained Toybox-Z: it learns to read a reference whose clean latent stands in its sequence."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn

from .optimisation import Run
from .train_flow import DECAYS, FlowDenoiser, velocity_loss
from .views import Views

#: share of steps without a reference
DROPPED = 0.1
RATE = 6e-4
WARMUP_STEPS = 30
#: velocity MSE of a trained Toybox-Z in bins of noise levels of equal width, where the running means start
TYPICAL = (0.75, 0.52, 0.42, 0.36, 0.31, 0.29, 0.27, 0.25, 0.26, 0.27, 0.28, 0.31, 0.37, 0.45, 0.54, 0.61, 0.68, 0.69, 0.74, 0.76)


def prepare(denoiser: FlowDenoiser, weights: dict[str, torch.Tensor]) -> None:
    """Begins with a trained transformer's ``weights``; what reads parts begins as nothing, so that it does not disturb them."""
    denoiser.transformer.load_state_dict(weights)
    denoiser.typical.copy_(torch.tensor(TYPICAL))
    nn.init.zeros_(denoiser.parts.weight)
    nn.init.zeros_(denoiser.parts.bias)
    for pad in (denoiser.transformer.x_pad_token, denoiser.transformer.cap_pad_token):
        pad.requires_grad_(False)


def alone(step: int) -> bool:
    """True if a step shows pictures without a reference."""
    return random.Random(step).random() < DROPPED


def reference_loss(denoiser: FlowDenoiser, views: Views, count: int) -> torch.Tensor:
    """The loss of ``count`` pictures, each beside a second view of its subject, of which nothing is asked."""
    batch, references = views.draw(count)
    return velocity_loss(denoiser, batch, (references,))


def train(denoiser: FlowDenoiser, views: Views, weights: dict[str, torch.Tensor], folder: Path, steps: int, batch: int,
          limit: int | None = None, rate: float = RATE) -> int:
    """Trains up to step ``limit`` of ``steps`` from ``weights``; leaves the averaged weights and returns the steps made.

    ``batch`` is the number of pairs in a step.
    """
    prepare(denoiser, weights)
    run = Run("edit", folder, denoiser, steps, rate, DECAYS, network=denoiser.transformer, warmup=WARMUP_STEPS)
    paired = run.stepper(lambda: reference_loss(denoiser, views, batch))
    single = run.stepper(lambda: velocity_loss(denoiser, views.pictures.singles(batch)))
    while run.step < min(run.steps, limit or run.steps):
        run.advance(single if alone(run.step) else paired)
    run.finish()
    return run.step
