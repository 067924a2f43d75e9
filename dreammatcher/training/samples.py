"""A picture of what is learned so far, drawn from the weights that learn, without a copy of the model."""

from __future__ import annotations

import torch

from ..subject import Conditioning
from ..weights import WeightOverrides
from .denoising import FrozenModel, Predictor
from .objective import EPSILON, FLOW, add_noise, per_picture, shares
from .recipe import Recipe

STEPS = 16
#: guidance by what a model predicts: flows are drawn with less
CFG, FLOW_CFG = 6.0, 4.0


def clean_estimate(prediction: str, noisy: torch.Tensor, said: torch.Tensor,
                   alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean picture and noise that a prediction means.

    With epsilon, x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a); with v, x_0 = sqrt(a) x_t - sqrt(1 - a) v and
    eps = sqrt(a) v + sqrt(1 - a) x_t; along a flow u, x_0 = x_t - s u and eps = x_t + (1 - s) u.
    """
    kept = per_picture(alpha_bar, noisy)
    if prediction == FLOW:
        signal, level = shares(FLOW, kept)
        return noisy - level * said, noisy + signal * said
    if prediction == EPSILON:
        return (noisy - (1 - kept).sqrt() * said) / kept.sqrt().clamp_min(1e-4), said
    return kept.sqrt() * noisy - (1 - kept).sqrt() * said, kept.sqrt() * said + (1 - kept).sqrt() * noisy


def sample(recipe: Recipe[FrozenModel], prompt: str, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Latents [1, C, h, w] of ``prompt`` by DDIM without noise (Song et al. 2021, Eq. 12) and classifier-free guidance.

    Along a flow the same step is Euler's. ``shape``: channels, height and width. The training's own random numbers are left
    alone.
    """
    models = recipe.showing(prompt)
    model, texts = models[0], [recipe.reading(text).each(torch.Tensor.detach) for text in (prompt, "")]
    unet = recipe.unet.weights(recipe.model.unet) if recipe.unet else {}
    weights = {name: value.detach() for name, value in unet.items()}
    noisy = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    cfg = FLOW_CFG if model.prediction == FLOW else CFG
    times = torch.linspace(len(model.alpha_bars) - 1, 0, STEPS).round().long()
    for time, later in zip(times, (*times[1:], None)):
        alpha_bar = model.alpha_bars[time][None].to(model.device)
        said = [_said(each, noisy, time, text, weights) for each, text in zip(models, texts)]
        clean, noise = clean_estimate(model.prediction, noisy, said[1] + cfg * (said[0] - said[1]), alpha_bar)
        kept = torch.ones(1) if later is None else model.alpha_bars[later][None]
        noisy = add_noise(clean, noise, kept.to(model.device), model.prediction)
    return noisy.cpu()


def _said(model: Predictor, noisy: torch.Tensor, time: torch.Tensor, text: Conditioning,
          weights: WeightOverrides) -> torch.Tensor:
    return model.predict(noisy, time[None].to(model.device), text, weights).detach()
