"""Training objectives: the noise prediction error of a latent diffusion model, and the terms that DreamBooth and others add.

Every loss is in the model's own prediction space, never in that of clean pictures: there the highest noise levels would weigh
sigma squared times as much.
"""

from __future__ import annotations

import torch

#: what a model predicts: the noise, or the velocity (Salimans and Ho 2022)
EPSILON, VELOCITY = "epsilon", "velocity"


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps (DDPM, Ho et al. 2020, Eq. 4). ``alpha_bar`` is one number per picture, [B]."""
    kept = per_picture(alpha_bar, clean)
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def target(prediction: str, clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """The model's target for x_t: eps, or v = sqrt(a) eps - sqrt(1 - a) x_0. Raises ValueError for other predictions."""
    if prediction == EPSILON:
        return noise
    if prediction == VELOCITY:
        kept = per_picture(alpha_bar, clean)
        return kept.sqrt() * noise - (1 - kept).sqrt() * clean
    raise ValueError(f"prediction: {prediction!r} is neither {EPSILON!r} nor {VELOCITY!r}")


def picture_errors(predicted: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of each picture, [B]; with a ``mask`` [B, 1, H, W] in 0..1 the mean over what it covers.

    Raises ValueError when a mask covers nothing: there would be nothing to learn from.
    """
    squared = (predicted.float() - wanted.float()).square()
    if mask is None:
        return squared.flatten(1).mean(1)
    covered = mask.expand_as(squared)
    weight = covered.flatten(1).sum(1)
    if bool((weight == 0).any()):
        raise ValueError("mask: it is empty for one of the pictures, so there would be nothing to learn from")
    return (squared * covered).flatten(1).sum(1) / weight


def min_snr_weights(alpha_bar: torch.Tensor, gamma: float, prediction: str) -> torch.Tensor:
    """Weights [B] of noise levels, min(SNR, gamma) / SNR for noise and / (SNR + 1) for velocity (Hang et al. 2023, Eq. 5).

    SNR is a / (1 - a). At zero terminal SNR the weight for noise is its limit, 1.
    """
    snr = alpha_bar / (1 - alpha_bar)
    if prediction == VELOCITY:
        return snr.clamp(max=gamma) / (snr + 1)
    return torch.where(snr > 0, snr.clamp(max=gamma) / snr.clamp_min(torch.finfo(snr.dtype).tiny), torch.ones_like(snr))


def prior_preserving(subject: torch.Tensor, prior: torch.Tensor | None, weight: float) -> torch.Tensor:
    """Mean error of the subject's pictures plus lambda times that of the class's (DreamBooth, Ruiz et al. 2023, Eq. 2)."""
    return subject.mean() if prior is None else subject.mean() + weight * prior.mean()


def per_picture(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshapes [B] to [B, 1, 1, 1] for a picture tensor."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like)
