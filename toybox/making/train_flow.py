"""Toybox-Z: the host's NextDiT, trained to predict velocities, and on the way to know parts."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import comfy.ops
import torch
import torch.nn.functional as F
from comfy.ldm.lumina.model import NextDiT
from torch import nn

from ..shapes import PART_LABELS
from ..transformer import CONFIG
from .material import Batch, Material
from .optimisation import Run, half_precision, initialise
from .train_diffusion import BINS, PART_WEIGHT, follow

log = logging.getLogger("toybox")

RATE = 1.2e-3
DECAYS = (0.999, 0.9997)
#: cells a side at which the middle block's features must tell the parts
SIDE = 16
#: share of batches that show pairs: two pictures of like subjects side by side
PAIRS = 0.35
#: velocity MSE from which the running means of all bins start
TYPICAL = 0.5
PAD_STD = 0.02


class TrainingOperations(comfy.ops.disable_weight_init):
    """The host's layers, with norms that compute in their input's type: torch has no fast kernel for two types at once."""

    class RMSNorm(torch.nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.rms_norm(x, self.normalized_shape, None if self.weight is None else self.weight.to(x.dtype), self.eps)


class FlowDenoiser(nn.Module):
    """The transformer and what reads parts from its middle block. ``context`` [captions, 77, 96]: every caption, encoded."""

    typical: torch.Tensor

    def __init__(self, layers: int, context: torch.Tensor, device: torch.device):
        super().__init__()
        self.transformer = NextDiT(**CONFIG, n_layers=layers, dtype=torch.float32, device=device, operations=TrainingOperations)
        self.parts = nn.Linear(CONFIG["dim"], len(PART_LABELS), device=device)
        self.register_buffer("typical", torch.full((BINS,), TYPICAL, device=device))
        self.context = context
        self.features = torch.empty(0)  # of the middle block in the last call
        self.transformer.layers[layers // 2].register_forward_hook(self._keep)

    def _keep(self, _module, _inputs, output: torch.Tensor) -> None:
        self.features = output

    def forward(self, noisy: torch.Tensor, sigmas: torch.Tensor, captions: torch.Tensor,
                references: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Velocities [B, 4, H, W] of ``noisy`` at noise levels ``sigmas`` [B] in 0..1, for numbers of captions [B].

        ``references`` are clean latents [B, 4, H, W], whose tokens stand in the sequence before those of ``noisy``.
        """
        return self.transformer(noisy, sigmas, self.context[captions].float(), self.context.shape[1],
                                ref_latents=list(references))


def prepare(denoiser: FlowDenoiser) -> None:
    """Initial weights: every block and the output begin as nothing, the pads at small random values that are never trained."""
    initialise(denoiser)
    transformer = denoiser.transformer
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.RMSNorm):
            nn.init.ones_(layer.weight)
        if "adaLN_modulation" in name and isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(transformer.final_layer.linear.weight)
    nn.init.zeros_(transformer.final_layer.linear.bias)
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.normal_(pad, std=PAD_STD)
        pad.requires_grad_(False)


def noise_levels(count: int, device: torch.device) -> torch.Tensor:
    """[count] in 0..1: two thirds of them in 0.3 to 0.9, where the colours of a subject's parts are decided."""
    uniform = torch.rand(count, device=device)
    middle = torch.rand(count, device=device) < 2 / 3
    return torch.where(middle, 0.3 + 0.6 * uniform, uniform).clamp(1e-3, 1 - 1e-3)


def part_loss(denoiser: FlowDenoiser, parts: torch.Tensor) -> torch.Tensor:
    """[B]: mean cross-entropy of the parts [B, H, W] as the middle block's picture tokens of the last call tell them."""
    cells = parts.flatten(1).long()
    told = denoiser.parts(denoiser.features[:, -cells.shape[1]:])
    return F.cross_entropy(told.float().transpose(1, 2), cells, reduction="none").mean(1)


def velocity_loss(denoiser: FlowDenoiser, batch: Batch, references: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """MSE of the velocity n - x0 at x = (1 - s) x0 + s n, divided by what is usual at its noise level, plus the parts' loss.

    Rectified flow (Liu et al. 2023); weights as in :func:`toybox.making.train_diffusion.noise_loss`. The part labels' loss is
    multiplied by 1 - s, since parts can be told only where the picture can be seen. Nothing is asked of ``references``.
    """
    device = batch.clean.device
    noise, sigmas = torch.randn_like(batch.clean), noise_levels(len(batch.clean), device)
    noisy = torch.lerp(batch.clean, noise, sigmas[:, None, None, None])
    with half_precision(device):
        velocity = denoiser(noisy, sigmas, batch.captions, references)
        parts = part_loss(denoiser, batch.parts[SIDE])
    error = F.mse_loss(velocity.float(), noise - batch.clean, reduction="none").mean((1, 2, 3))
    bins = (sigmas * BINS).long().clamp(max=BINS - 1)
    usual = denoiser.typical[bins]
    follow(denoiser.typical, bins, error.detach())
    return (error / usual + PART_WEIGHT * (1 - sigmas) * parts).mean()


def train(denoiser: FlowDenoiser, pictures: Material, folder: Path, steps: int, batch: int, limit: int | None = None) -> int:
    """Trains up to step ``limit`` of ``steps``; leaves the averaged weights and returns the steps made.

    ``batch`` is the number of pictures in a step.
    """
    torch.manual_seed(0)
    prepare(denoiser)
    run = Run("transformer", folder, denoiser, steps, RATE, DECAYS, network=denoiser.transformer)
    singles = run.stepper(lambda: velocity_loss(denoiser, pictures.singles(batch)))
    pairs = run.stepper(lambda: velocity_loss(denoiser, pictures.pairs(batch // 2)))
    while run.step < min(run.steps, limit or run.steps):
        run.advance(pairs if random.Random(run.step).random() < PAIRS else singles)
    run.finish()
    return run.step
