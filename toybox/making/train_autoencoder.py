"""The autoencoder: TAESD's layout at half width, trained on crops, then widened to the host's own TAESD.

Half the width is a quarter of the work, which two CPU cores need. :func:`widen` pads the missing channels with
zeros, so that the host's class computes exactly the same pictures.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .dataset import Dataset
from .optimisation import Run, fast_bfloat16, initialise

log = logging.getLogger("toybox")

WIDTH = 32
CROP_STEPS, WHOLE_STEPS = 7_000, 2_000
CROP_BATCH, WHOLE_BATCH = 12, 4
LATENT_NOISE = 0.05


class Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x) + x)


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Autoencoder(nn.Module):
    """TAESD's layers in TAESD's order, so that the names of the weights agree. Pixels are 0..1."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        down = lambda: [conv(width, width, stride=2, bias=False), *(Block(width) for _ in range(3))]  # noqa: E731
        up = lambda: [*(Block(width) for _ in range(3)), nn.Upsample(scale_factor=2),  # noqa: E731
                      conv(width, width, bias=False)]
        self.taesd_encoder = nn.Sequential(conv(3, width), Block(width), *down(), *down(), *down(), conv(width, 4))
        self.taesd_decoder = nn.Sequential(Clamp(), conv(4, width), nn.ReLU(), *up(), *up(), *up(), Block(width),
                                           conv(width, 3))


def widen(narrow: Autoencoder, wide: nn.Module) -> None:
    """Copies a narrow autoencoder into the host's TAESD; the channels it lacks are zero. The function is the same."""
    weights = wide.state_dict()
    for name, value in narrow.state_dict().items():
        padded = torch.zeros_like(weights[name])
        padded[tuple(slice(0, size) for size in value.shape)] = value
        weights[name] = padded
    wide.load_state_dict(weights)


def narrowed(wide: dict[str, torch.Tensor]) -> Autoencoder:
    """The narrow autoencoder that :func:`widen` made ``wide`` of. Raises ValueError when a channel it lacks is not zero."""
    narrow = Autoencoder()
    weights = narrow.state_dict()
    for name, value in weights.items():
        kept = tuple(slice(0, size) for size in value.shape)
        if wide[name].count_nonzero() != wide[name][kept].count_nonzero():
            raise ValueError(f"{name}: it has more than {WIDTH} channels that are not zero")
        weights[name] = wide[name][kept].float()
    narrow.load_state_dict(weights)
    return narrow


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def picture_loss(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 + 2 MSE + 0.5 gradient L1, pixels in 0..1."""
    sharpness = sum((a - b).abs().mean() for a, b in zip(edges(made), edges(wanted)))
    return (made - wanted).abs().mean() + 2 * F.mse_loss(made, wanted) + 0.5 * sharpness


def batch_of(pictures: np.ndarray, count: int, crop: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops, [count, 3, crop, crop] in 0..1."""
    size = pictures.shape[1]
    out = np.empty((count, crop, crop, 3), np.uint8)
    for row, index in enumerate(rng.integers(0, len(pictures), count)):
        y, x = rng.integers(0, size - crop + 1, 2)
        out[row] = pictures[index, y:y + crop, x:x + crop]
    images = torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(255)
    return images.contiguous(memory_format=torch.channels_last)


def fit(model: Autoencoder, data: Dataset, run: Run, count: int, crop: int) -> None:
    while run.step < run.steps:
        torch.manual_seed(run.step)
        images = batch_of(data.pictures, count, crop, np.random.default_rng(run.step + crop))
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            latent = model.taesd_encoder(images)
            made = model.taesd_decoder(latent + LATENT_NOISE * torch.randn_like(latent))
        run.descend(picture_loss(made.float(), images) + 1e-3 * latent.float().pow(2).mean())
    run.finish()


def train(data: Dataset, folder: Path, model: Autoencoder | None = None, crop_steps: int = CROP_STEPS) -> Autoencoder:
    """Crops first, then the decoder alone on whole pictures: the latents stay as they are. Begins with ``model`` if given."""
    if model is None:
        model = Autoencoder()
        initialise(model)
    model.to(memory_format=torch.channels_last)
    fit(model, data, Run("autoencoder_crops", folder, model, crop_steps, 2e-3), CROP_BATCH, 64)
    normalise_latents(model, data)
    model.taesd_encoder.requires_grad_(False)
    fit(model, data, Run("autoencoder_whole", folder, model, WHOLE_STEPS, 1e-3), WHOLE_BATCH, 128)
    return model.requires_grad_(False)


@torch.no_grad()
def normalise_latents(model: Autoencoder, data: Dataset) -> None:
    """Folds zero mean and unit variance per channel into the encoder's last and the decoder's first convolution."""
    images = batch_of(data.pictures, 128, 128, np.random.default_rng(2))
    latents = torch.cat([model.taesd_encoder(part) for part in images.split(16)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    log.info("latent mean %s, deviation %s", mean.tolist(), std.tolist())
    last, first = model.taesd_encoder[-1], model.taesd_decoder[1]
    last.weight.div_(std[:, None, None, None])
    last.bias.copy_((last.bias - mean) / std)
    first.bias.add_((first.weight * mean[None, :, None, None]).sum((1, 2, 3)))
    first.weight.mul_(std[None, :, None, None])


@torch.no_grad()
def encode(model: Autoencoder, data: Dataset, count: int) -> torch.Tensor:
    """Latents of the first ``count`` training pictures, float16 [count, 4, 16, 16]."""
    out = torch.empty(count, 4, 16, 16, dtype=torch.float16)
    for start in range(0, count, 32):
        images = torch.from_numpy(np.array(data.pictures[start:start + 32])).permute(0, 3, 1, 2).float().div_(255)
        latent = model.taesd_encoder(images.contiguous(memory_format=torch.channels_last))
        out[start:start + 32] = latent[:count - start].half()
    return out


@torch.no_grad()
def reconstruction_error(model: nn.Module, data: Dataset) -> float:
    """Mean absolute pixel error of an encode-decode round trip, 0..1."""
    images = batch_of(data.pictures, 32, 128, np.random.default_rng(4))
    return (model.taesd_decoder(model.taesd_encoder(images)).clamp(0, 1) - images).abs().mean().item()
