"""Training objectives: the noise prediction error of a latent diffusion model, and the terms that DreamBooth and others add.

Every loss is in the model's own prediction space, never in that of clean pictures: there the highest noise levels would weigh
sigma squared times as much.
"""

from __future__ import annotations

import torch

from .details import CONSTANT, EARLY, EXPONENTIAL, HUBER, LATE, SQUARED, UNIFORM, Noise

#: what a model predicts: the noise, the velocity (Salimans and Ho 2022), or the flow (Lipman et al. 2023)
EPSILON, VELOCITY, FLOW = "epsilon", "velocity", "flow"


def shares(prediction: str, alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The shares of the clean picture and of the noise in x_t, for a model of this ``prediction``.

    They are sqrt(a) and sqrt(1 - a) (DDPM, Ho et al. 2020, Eq. 4); along a flow 1 - s and s, where ``alpha_bar`` a is (1 - s)^2.
    """
    signal = alpha_bar.sqrt()
    return signal, 1 - signal if prediction == FLOW else (1 - alpha_bar).sqrt()


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, prediction: str = EPSILON) -> torch.Tensor:
    """x_t of both, by their :func:`shares`. ``alpha_bar`` is one number per picture, [B]."""
    signal, level = shares(prediction, per_picture(alpha_bar, clean))
    return signal * clean + level * noise


def timesteps_of(count: int, timesteps: int, times: str, generator: torch.Generator) -> torch.Tensor:
    """``count`` timesteps below ``timesteps``, int64: evenly drawn (DDPM, Algorithm 1), or by another distribution.

    Early ones, of much noise, are at 1 - u^3 of the way for an even u (T2I-Adapter, Mou et al. 2023, Sec. 3.4), late ones at
    u^3, its mirror. Logit-normal ones are at sigmoid(n) for a normal n (Esser et al. 2024, Sec. 3.1), in the middle.
    """
    if times == UNIFORM:
        return torch.randint(timesteps, (count,), generator=generator)
    if times in (EARLY, LATE):
        cubed = torch.rand(count, generator=generator) ** 3
        share = cubed if times == LATE else 1 - cubed
    else:
        share = torch.randn(count, generator=generator).sigmoid()
    return (share * timesteps).long().clamp(max=timesteps - 1)


def offset_noise(noise: torch.Tensor, offset: float, generator: torch.Generator) -> torch.Tensor:
    """Noise [B, C, H, W] whose channels are moved as a whole, so that brightness is learned (Guttenberg 2023; diffusers and
    kohya alike): eps + offset * delta for a normal delta [B, C, 1, 1]."""
    return noise + offset * torch.randn(*noise.shape[:2], 1, 1, generator=generator)


def target(prediction: str, clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """The model's target for x_t: eps, v = sqrt(a) eps - sqrt(1 - a) x_0, or along a flow eps - x_0 (Esser et al. 2024, Eq. 13).

    Raises ValueError for other predictions.
    """
    if prediction == EPSILON:
        return noise
    if prediction == FLOW:
        return noise - clean
    if prediction == VELOCITY:
        kept = per_picture(alpha_bar, clean)
        return kept.sqrt() * noise - (1 - kept).sqrt() * clean
    raise ValueError(f"prediction: {prediction!r} is none of {EPSILON!r}, {VELOCITY!r} and {FLOW!r}")


def huber_thresholds(noise: Noise, alpha_bar: torch.Tensor, timesteps: torch.Tensor, count: int,
                     prediction: str = EPSILON) -> torch.Tensor | None:
    """The error c [B] above which a loss grows less than its square, of each of ``timesteps`` [B] out of ``count``.

    As kohya's ``--huber_schedule`` has it: c itself; c^(t / T), which falls from 1 to c; or, with sigma^2 = (1 - a) / a,
    (1 - c) / (1 + sigma)^2 + c. Along a flow, for which kohya has no such schedule, sigma is s / (1 - s), the same ratio of noise
    to picture. None for the squared error.
    """
    if noise.loss == SQUARED:
        return None
    if noise.huber_schedule == CONSTANT:
        return torch.full_like(alpha_bar, noise.huber_c)
    if noise.huber_schedule == EXPONENTIAL:
        return noise.huber_c ** (timesteps.to(alpha_bar) / count)
    present = alpha_bar.clamp_min(torch.finfo(alpha_bar.dtype).tiny)
    sigma = 1 / present.sqrt() - 1 if prediction == FLOW else ((1 - alpha_bar) / present).sqrt()
    return (1 - noise.huber_c) / (1 + sigma).square() + noise.huber_c


def elementwise(difference: torch.Tensor, loss: str, thresholds: torch.Tensor | None) -> torch.Tensor:
    """The loss of each number of a ``difference`` [B, ...]: d^2, or with a threshold c of each picture what kohya calls
    huber, 2 c (sqrt(d^2 + c^2) - c), and smooth_l1, the same without the factor c (pseudo-Huber, Charbonnier et al. 1997)."""
    if thresholds is None:
        return difference.square()
    c = per_picture(thresholds, difference)
    robust = 2 * ((difference.square() + c.square()).sqrt() - c)
    return c * robust if loss == HUBER else robust


def picture_errors(predicted: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None = None, loss: str = SQUARED,
                   thresholds: torch.Tensor | None = None) -> torch.Tensor:
    """Mean error of each picture, [B], squared or as :func:`elementwise` says; with a ``mask`` [B, 1, H, W] in 0..1 the mean
    over what it covers.

    Raises ValueError when a mask covers nothing: there would be nothing to learn from.
    """
    each = elementwise(predicted.float() - wanted.float(), loss, thresholds)
    if mask is None:
        return each.flatten(1).mean(1)
    covered = mask.expand_as(each)
    weight = covered.flatten(1).sum(1)
    if bool((weight == 0).any()):
        raise ValueError("mask: it is empty for one of the pictures, so there would be nothing to learn from")
    return (each * covered).flatten(1).sum(1) / weight


def min_snr_weights(alpha_bar: torch.Tensor, gamma: float, prediction: str) -> torch.Tensor:
    """Weights [B] of noise levels, min(SNR, gamma) / SNR for noise and / (SNR + 1) for velocity (Hang et al. 2023, Eq. 5).

    SNR is a / (1 - a). At zero terminal SNR the weight for noise is its limit, 1. An error of s in the flow is one of s in the
    clean picture, so along a flow the weight of its square is min(SNR, gamma) s^2, where SNR is (1 - s)^2 / s^2.
    """
    if prediction == FLOW:
        level = shares(FLOW, alpha_bar)[1]
        return torch.minimum(alpha_bar, gamma * level.square())
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
