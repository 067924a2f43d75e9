"""The autoencoder: the host's TAESD, trained on crops of the pictures, then its decoder alone on whole pictures."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .optimisation import Run, half_precision, initialise

log = logging.getLogger("toybox")

CROP, WHOLE = 64, 128  # pixels a side
LATENT_NOISE = 0.05


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def picture_loss(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 + 2 MSE + 0.5 gradient L1, pixels in 0..1."""
    sharpness = sum((a - b).abs().mean() for a, b in zip(edges(drawn), edges(wanted)))
    return (drawn - wanted).abs().mean() + 2 * F.mse_loss(drawn, wanted) + 0.5 * sharpness


def as_input(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] in 0..1."""
    return pictures.to(device).permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


def random_crops(pictures: torch.Tensor, count: int, crop: int, device: torch.device) -> torch.Tensor:
    """[count, 3, crop, crop] in 0..1 from uint8 [N, H, W, 3]."""
    rows = torch.randint(len(pictures), (count, 1, 1), device=pictures.device)
    y, x = torch.randint(pictures.shape[1] - crop + 1, (2, count, 1), device=pictures.device)
    along = torch.arange(crop, device=pictures.device)
    return as_input(pictures[rows, (y + along)[:, :, None], (x + along)[:, None, :]], device)


def fit(model: Any, pictures: torch.Tensor, run: Run, count: int, crop: int) -> None:
    def loss() -> torch.Tensor:
        images = random_crops(pictures, count, crop, run.device)
        with half_precision(run.device):
            latent = model.taesd_encoder(images)
            drawn = model.taesd_decoder(latent + LATENT_NOISE * torch.randn_like(latent))
        return picture_loss(drawn.float(), images) + 1e-3 * latent.float().pow(2).mean()

    step = run.stepper(loss)
    while run.step < run.steps:
        run.advance(step)
    run.finish()


@dataclass(frozen=True)
class AutoencoderSteps:
    """Steps and pictures in a step, for the crops and for the whole pictures after them."""

    crop_steps: int
    crops: int
    whole_steps: int
    wholes: int


def train(model: Any, pictures: torch.Tensor, folder: Path, plan: AutoencoderSteps, fresh: bool = True) -> None:
    """Crops first, then the decoder alone on whole pictures: the latents stay as they are.

    ``model``: the host's TAESD, on the device it learns on; ``fresh`` gives it new weights. ``pictures``: uint8 [N, 128, 128, 3].
    """
    if fresh:
        initialise(model)
    model.vae_scale.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    fit(model, pictures, Run("autoencoder_crops", folder, model, plan.crop_steps, 2e-3), plan.crops, CROP)
    normalise_latents(model, pictures)
    model.taesd_encoder.requires_grad_(False)
    fit(model, pictures, Run("autoencoder_whole", folder, model, plan.whole_steps, 1e-3), plan.wholes, WHOLE)
    model.requires_grad_(False)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def normalise_latents(model: Any, pictures: torch.Tensor) -> None:
    """Folds zero mean and unit variance per channel into the encoder's last and the decoder's first convolution."""
    latents = encode(model, pictures[:512]).float()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    log.info("latent mean %s, deviation %s", mean.tolist(), std.tolist())
    last, first = model.taesd_encoder[-1], model.taesd_decoder[1]
    last.weight.div_(std[:, None, None, None])
    last.bias.copy_((last.bias - mean) / std)
    first.bias.add_((first.weight * mean[None, :, None, None]).sum((1, 2, 3)))
    first.weight.mul_(std[None, :, None, None])


@torch.no_grad()
def encode(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Latents of pictures uint8 [N, 128, 128, 3], float16 [N, 4, 16, 16], on the model's device."""
    device = device_of(model)
    return torch.cat([model.taesd_encoder(as_input(part, device)).half() for part in pictures.split(64)])


@torch.no_grad()
def reconstruction_error(model: Any, pictures: torch.Tensor) -> float:
    """Mean absolute pixel error of an encode-decode round trip, 0..1."""
    images = as_input(pictures, device_of(model))
    return (model.taesd_decoder(model.taesd_encoder(images)).clamp(0, 1) - images).abs().mean().item()
