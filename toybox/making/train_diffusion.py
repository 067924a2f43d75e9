"""The denoiser: the host's UNet and CLIP text model, trained together to predict noise, and on the way to know parts."""

from __future__ import annotations

import logging
import random
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from toybox.host import TEXT_WIDTH, zero_padding

from ..shapes import PART_LABELS
from .captions import ANSWERS, Captions, told
from .material import Batch, Material
from .optimisation import Run, half_precision, initialise, keep_norm_inputs

log = logging.getLogger("toybox")

RATE = 1.2e-3
#: lengths of the two weight averages; the first is exported, both are in the checkpoint
DECAYS = (0.999, 0.9997)
#: weight of the part labels' cross-entropy, and the decoder blocks whose features must tell them: cells a side -> block
PART_WEIGHT = 0.3
PART_BLOCKS = {8: "output_blocks.3.1", 16: "output_blocks.5.1"}
#: share of batches that show pairs: two pictures of like subjects side by side
PAIRS = 0.4
BINS = 20
#: noise MSE that a model without captions reaches, in bins of timesteps of equal width, where the running means start
TYPICAL = (0.45, 0.22, 0.17, 0.145, 0.125, 0.11, 0.095, 0.085, 0.076, 0.067, 0.058, 0.05, 0.042, 0.034, 0.027, 0.021,
           0.016, 0.012, 0.0085, 0.0065)
WORD_STEPS = 500

#: state dicts of a UNet and of a text encoder
Weights = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that one optimiser and one checkpoint hold both."""

    unet: Any  # the host's, as the text encoder
    text: Any
    typical: torch.Tensor

    def __init__(self, unet: nn.Module, text: nn.Module, captions: Captions):
        super().__init__()
        self.unet, self.text, self.captions = unet, text, captions
        self.register_buffer("typical", torch.tensor(TYPICAL))
        self.parts = nn.ModuleList()
        self.features: list[torch.Tensor] = []
        for name in PART_BLOCKS.values():
            block: Any = unet.get_submodule(name)
            self.parts.append(nn.Conv2d(block.proj_out.out_channels, len(PART_LABELS), 1))

    def watch(self) -> None:
        """Makes every call from now on leave the features that :func:`part_loss` reads."""
        for name in PART_BLOCKS.values():
            self.unet.get_submodule(name).register_forward_hook(lambda _, __, feature: self.features.append(feature))

    def context(self, captions: torch.Tensor) -> torch.Tensor:
        """Numbers of captions [B] -> [B, 77, 96] as the host's CLIPTextEncode makes it."""
        return zero_padding(self.text(self.captions.tokens[captions])[0], self.captions.ends[captions])

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, timesteps.float(), context=self.context(captions))


def prepare(denoiser: Denoiser) -> None:
    """Initial weights, and what training needs of the modules."""
    denoiser.float()  # the host makes its text encoder in float16, in which AdamW diverges
    initialise(denoiser)
    for block in denoiser.unet.modules():  # residual branches start at zero, as in the original UNet
        if type(block).__name__ == "ResBlock":
            nn.init.zeros_(block.out_layers[-1].weight)
        if type(block).__name__ == "SpatialTransformer":
            nn.init.zeros_(block.proj_out.weight)
    nn.init.zeros_(denoiser.unet.out[-1].weight)
    prepare_text(denoiser.text)
    denoiser.watch()
    denoiser.text.text_projection.requires_grad_(False)
    keep_norm_inputs(denoiser)
    denoiser.unet.to(memory_format=torch.channels_last)


def prepare_text(text: Any) -> None:
    """Words must stand out in the residual stream, or captions stay unread."""
    initialise(text)
    for layer in text.modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    nn.init.normal_(text.get_input_embeddings().weight, std=0.3)
    nn.init.eye_(text.text_projection.weight)


def part_loss(denoiser: Denoiser, parts: dict[int, torch.Tensor]) -> torch.Tensor:
    """[B]: mean cross-entropy of the part in the middle of every cell, as the decoder's features of the last call tell it.

    Features that know which part a cell shows are what large models learn from data; asking for them speeds up training
    (REPA, Yu et al. 2024). The layer that reads them is not part of the model.
    """
    losses = [F.cross_entropy(read(feature).float(), parts[side].long(), reduction="none").mean((1, 2))
              for side, read, feature in zip(PART_BLOCKS, denoiser.parts, denoiser.features)]
    return reduce(torch.add, losses) / len(losses)


def timesteps(count: int, total: int, device: torch.device) -> torch.Tensor:
    """[count], two thirds of them where the colours of a subject's parts are decided and must come to agree."""
    low, high = 3 * total // 10, 8 * total // 10
    middle = torch.rand(count, device=device) < 2 / 3
    return torch.where(middle, torch.randint(low, high, (count,), device=device),
                       torch.randint(0, total, (count,), device=device))


@torch.no_grad()
def follow(typical: torch.Tensor, bins: torch.Tensor, errors: torch.Tensor) -> None:
    """Moves each bin's running mean by a hundredth for every error that was seen there. [BINS], [B], [B]."""
    seen = F.one_hot(bins, len(typical)).to(errors)
    count = seen.sum(0)
    mean = (seen * errors[:, None]).sum(0) / count.clamp(min=1)
    typical.add_((mean - typical) * (1 - 0.99**count))


def noise_loss(denoiser: Denoiser, batch: Batch, alphas: torch.Tensor) -> torch.Tensor:
    """Noise MSE divided by what is usual at its noise level, so that every level counts the same.

    The purpose of EDM2's uncertainty weights (Karras et al. 2024, Sec. B.2) with running means in their place: captions
    matter most where noise is high, and there the plain MSE is a hundredth of its value elsewhere. The part labels' loss is
    added where the picture can be seen: it is multiplied by sqrt(alpha_bar).
    """
    noise, t = torch.randn_like(batch.clean), timesteps(len(batch.clean), len(alphas), alphas.device)
    alpha = alphas[t][:, None, None, None]
    noisy = alpha.sqrt() * batch.clean + (1 - alpha).sqrt() * noise
    denoiser.features.clear()
    with half_precision(alphas.device):
        predicted = denoiser(noisy.contiguous(memory_format=torch.channels_last), t, batch.captions)
        parts = part_loss(denoiser, batch.parts)
    error = F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
    bins = t * BINS // len(alphas)
    usual = denoiser.typical[bins]
    follow(denoiser.typical, bins, error.detach())
    return (error / usual + PART_WEIGHT * alphas[t].sqrt() * parts).mean()


def learn_words(denoiser: Denoiser, facts: torch.Tensor) -> None:
    """The text encoder alone first learns to say what a caption tells, so that its words differ for the UNet to read.

    The mean of a caption's token states must tell class, colours, facing and scene, or that it names none. ``facts`` [N, 4].
    """
    prepare_text(denoiser.text)
    heads = nn.Linear(TEXT_WIDTH, sum(map(len, ANSWERS)), device=facts.device)
    optimiser = torch.optim.AdamW([*denoiser.text.parameters(), *heads.parameters()], lr=1e-3)
    for step in range(WORD_STEPS):
        chosen = told(facts[torch.randint(len(facts), (32,), device=facts.device)])
        states = denoiser.context(Captions.numbers(chosen))
        guesses = heads(states.sum(1) / states.any(-1).sum(1, keepdim=True)).split([len(a) for a in ANSWERS], 1)
        loss = reduce(torch.add, (F.cross_entropy(guess, chosen[:, column]) for column, guess in enumerate(guesses)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            log.info("words %d/%d loss %.4f", step + 1, WORD_STEPS, loss.item())


def sharpen_cross_attention(denoiser: Denoiser) -> None:
    """Cross-attention anew, with scores large enough to tell words apart from the first step on."""
    for block in denoiser.unet.modules():
        if type(block).__name__ == "BasicTransformerBlock":
            for layer in (block.attn2.to_q, block.attn2.to_k, block.attn2.to_v):
                nn.Linear.reset_parameters(layer)
            for layer in (block.attn2.to_q, block.attn2.to_k):
                layer.weight.data.mul_(2.5)


def train(denoiser: Denoiser, pictures: Material, alphas: torch.Tensor, folder: Path, steps: int, batch: int,
          limit: int | None = None, earlier: Weights | None = None) -> int:
    """Trains up to step ``limit`` of ``steps``; leaves the averaged weights and returns the steps made.

    A new run begins with the ``earlier`` weights of UNet and text encoder if they are given. ``batch`` is the number of
    pictures in a step, ``alphas`` [T] the schedule's alpha_bar.
    """
    prepare(denoiser)
    if (folder / "denoiser.pt").exists():
        pass
    elif earlier is not None:
        denoiser.unet.load_state_dict(earlier[0])
        denoiser.text.load_state_dict(earlier[1])
    else:
        torch.manual_seed(0)
        learn_words(denoiser, pictures.facts)
        sharpen_cross_attention(denoiser)
    run = Run("denoiser", folder, denoiser, steps, RATE, DECAYS, network=denoiser.unet)
    singles = run.stepper(lambda: noise_loss(denoiser, pictures.singles(batch), alphas))
    pairs = run.stepper(lambda: noise_loss(denoiser, pictures.pairs(batch // 2), alphas))
    while run.step < min(run.steps, limit or run.steps):
        run.advance(pairs if random.Random(run.step).random() < PAIRS else singles)
    run.finish()
    return run.step
