"""A latent diffusion model as training sees it, and the error that it makes on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from ..subject import Conditioning
from .data import Batch
from .objective import add_noise, min_snr_weights, picture_errors, target
from .settings import ObjectiveSettings
from .trainables import TokenRows, Weights


class Denoiser(Protocol):
    """A frozen model. Nothing that is passed to it is written to it."""

    alpha_bars: torch.Tensor  # [T], of every timestep
    prediction: str  # what it predicts: see objective
    device: torch.device
    unet: Weights  # its weights by name
    text: Weights  # its text encoder's, by name

    def encode(self, captions: list[str], weights: Weights | None = None,
               rows: Mapping[str, TokenRows] | None = None) -> Conditioning:
        """The captions' conditioning [B, L, D], with stand-ins for weights of the text encoder and rows for new words."""

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning,
                weights: Weights) -> torch.Tensor:
        """What the model says about ``noisy`` [B, C, h, w] at ``timesteps`` [B], with stand-ins for weights of its UNet."""


def errors(model: Denoiser, batch: Batch, conditioning: Conditioning, weights: Weights, objective: ObjectiveSettings,
           generator: torch.Generator, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction error [R] of some ``rows`` [R] of a batch, each at a timestep of its own, drawn evenly (DDPM, Algorithm 1), and
    its weight [R]. ``conditioning`` is of these rows.

    Noise and timesteps are drawn for the whole batch, in main memory, so that every device and process learns from the same ones.
    """
    timesteps = torch.randint(len(model.alpha_bars), (len(batch.latents),), generator=generator)[rows]
    noise = torch.randn(batch.latents.shape, generator=generator)[rows].to(model.device)
    batch = batch.only(rows)
    clean, alpha_bar = batch.latents.to(model.device), model.alpha_bars[timesteps].to(model.device)
    predicted = model.predict(add_noise(clean, noise, alpha_bar), timesteps.to(model.device), conditioning, weights)
    mask = batch.masks.to(model.device) if objective.masked and batch.masks is not None else None
    error = picture_errors(predicted, target(model.prediction, clean, noise, alpha_bar), mask)
    if not objective.min_snr_gamma:
        return error, torch.ones_like(error)
    return error, min_snr_weights(alpha_bar, objective.min_snr_gamma, model.prediction).to(error)
