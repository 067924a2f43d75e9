"""The denoiser: the host's UNet and CLIP text model, trained together to predict noise."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .dataset import Dataset
from .optimisation import Run, initialise, keep_norm_inputs

BATCH = 24
CAPTION_DROPOUT = 0.11
SNR_CAP = 5.0


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that one optimiser and one checkpoint hold both."""

    def __init__(self, unet: nn.Module, text: nn.Module, tokenize):
        super().__init__()
        self.unet, self.text = unet, text
        self.tokenize, self.cache = tokenize, {}

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """[B, 77] token numbers."""
        for caption in captions:
            if caption not in self.cache:
                self.cache[caption] = [pair[0] for pair in self.tokenize(caption)["l"][0]]
        return torch.tensor([self.cache[caption] for caption in captions])

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, captions: list[str]) -> torch.Tensor:
        context = self.text(self.tokens(captions))[0]
        return self.unet(noisy, timesteps.float(), context=context)


def prepare(denoiser: Denoiser) -> None:
    denoiser.float()  # the host makes its text encoder in float16, in which AdamW diverges
    initialise(denoiser)
    for block in denoiser.unet.modules():  # residual branches start at zero, as in the original UNet
        if type(block).__name__ == "ResBlock":
            nn.init.zeros_(block.out_layers[-1].weight)
        if type(block).__name__ == "SpatialTransformer":
            nn.init.zeros_(block.proj_out.weight)
    nn.init.zeros_(denoiser.unet.out[-1].weight)
    for layer in denoiser.text.modules():  # words must stand out in the residual stream, or captions stay unread
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    nn.init.normal_(denoiser.text.get_input_embeddings().weight, std=0.3)
    nn.init.eye_(denoiser.text.text_projection.weight)
    denoiser.text.text_projection.requires_grad_(False)
    keep_norm_inputs(denoiser)
    denoiser.unet.to(memory_format=torch.channels_last)


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; where it does not, float32 is forty times faster."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def noise_loss(denoiser: Denoiser, clean: torch.Tensor, captions: list[str], alphas: torch.Tensor) -> torch.Tensor:
    """Min-SNR-5 weighted noise MSE (Hang et al. 2023, Eq. 7 for noise prediction). ``clean`` [B, 4, H, W]."""
    noise, t = torch.randn_like(clean), torch.randint(0, len(alphas), (len(clean),))
    alpha = alphas[t][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
        made = denoiser(noisy.contiguous(memory_format=torch.channels_last), t, captions)
    snr = alphas[t] / (1 - alphas[t])
    error = F.mse_loss(made.float(), noise, reduction="none").mean((1, 2, 3))
    return (error * snr.clamp(max=SNR_CAP) / snr).mean()


def train(denoiser: Denoiser, latents: torch.Tensor, data: Dataset, alphas: torch.Tensor, folder: Path, steps: int,
          limit: int | None = None) -> int:
    """Trains up to step ``limit`` of a schedule of ``steps``; leaves the averaged weights in the module."""
    prepare(denoiser)
    run = Run("denoiser", folder, denoiser, steps, 6e-4)
    rng = random.Random(run.step)
    torch.manual_seed(run.step)
    while run.step < min(steps, limit or steps):
        rows = [rng.randrange(len(latents)) for _ in range(BATCH)]
        captions = ["" if rng.random() < CAPTION_DROPOUT else data.shown[row].caption(rng) for row in rows]
        run.descend(noise_loss(denoiser, latents[rows].float(), captions, alphas))
    run.finish()
    return run.step
