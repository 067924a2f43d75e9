"""The denoiser: the host's UNet and CLIP text model, trained together to predict noise, and on the way to know parts."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from toybox.host import TEXT_WIDTH, zero_padding

from ..shapes import PART_LABELS
from ..world import CLASSES, COLOURS, SCENES
from ..world import caption as caption_of
from .dataset import Dataset
from .optimisation import Run, fast_bfloat16, initialise, keep_norm_inputs

log = logging.getLogger("toybox")

BATCH = 24
CAPTION_DROPOUT = 0.11
RATE = 1.2e-3
#: lengths of the two weight averages; the first is exported, both are in the checkpoint
DECAYS = (0.999, 0.9997)
#: weight of the part labels' cross-entropy, and the decoder blocks whose features must tell them: cells a side -> block
PART_WEIGHT = 0.3
PART_BLOCKS = {8: "output_blocks.3.1", 16: "output_blocks.5.1"}
#: share of batches that show pairs: two pictures of like subjects side by side
PAIRS = 0.4
LEVELS = 20
#: noise MSE that a model without captions reaches, at its levels of equal width, where the running means start
TYPICAL = (0.45, 0.22, 0.17, 0.145, 0.125, 0.11, 0.095, 0.085, 0.076, 0.067, 0.058, 0.05, 0.042, 0.034, 0.027, 0.021,
           0.016, 0.012, 0.0085, 0.0065)


#: state dicts of a UNet and of a text encoder
Weights = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that one optimiser and one checkpoint hold both."""

    def __init__(self, unet: nn.Module, text: nn.Module, tokenize):
        super().__init__()
        self.unet, self.text = unet, text
        self.tokenize, self.cache = tokenize, {}
        self.register_buffer("typical", torch.tensor(TYPICAL))
        self.parts = nn.ModuleList()
        self.features: list[torch.Tensor] = []
        for name in PART_BLOCKS.values():
            block = unet.get_submodule(name)
            self.parts.append(nn.Conv2d(block.proj_out.out_channels, len(PART_LABELS), 1))

    def watch(self) -> None:
        """From now on every call leaves the features that :func:`part_loss` reads."""
        for name in PART_BLOCKS.values():
            self.unet.get_submodule(name).register_forward_hook(lambda _, __, feature: self.features.append(feature))

    def tokens(self, captions: list[str]) -> tuple[torch.Tensor, list[int]]:
        """[B, 77] token numbers, and where each caption's end token is."""
        for caption in captions:
            if caption not in self.cache:
                self.cache[caption] = [pair[0] for pair in self.tokenize(caption)["l"][0]]
        rows = [self.cache[caption] for caption in captions]
        return torch.tensor(rows), [row.index(max(row)) for row in rows]

    def context(self, captions: list[str]) -> torch.Tensor:
        """[B, 77, 96] as the host's CLIPTextEncode makes it."""
        tokens, ends = self.tokens(captions)
        return zero_padding(self.text(tokens)[0], ends)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, captions: list[str]) -> torch.Tensor:
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


def prepare_text(text: nn.Module) -> None:
    """Words must stand out in the residual stream, or captions stay unread."""
    initialise(text)
    for layer in text.modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    nn.init.normal_(text.get_input_embeddings().weight, std=0.3)
    nn.init.eye_(text.text_projection.weight)


def part_loss(denoiser: Denoiser, labels: torch.Tensor) -> torch.Tensor:
    """[B]: mean cross-entropy of the part in the middle of every cell, as the decoder's features of the last call tell it.

    Features that know which part a cell shows are what large models learn from data; asking for them speeds up training
    (REPA, Yu et al. 2024). The layer that reads them is not part of the model. ``labels`` [B, 128, W] uint8.
    """
    losses = []
    for side, read, feature in zip(PART_BLOCKS, denoiser.parts, denoiser.features):
        cell = labels.shape[-2] // side
        wanted = labels[:, cell // 2::cell, cell // 2::cell].long()
        losses.append(F.cross_entropy(read(feature).float(), wanted, reduction="none").mean((1, 2)))
    return sum(losses) / len(losses)


def timesteps(count: int, levels: int) -> torch.Tensor:
    """[count], two thirds of them where the colours of a subject's parts are decided and must come to agree."""
    low, high = 3 * levels // 10, 8 * levels // 10
    middle = torch.rand(count) < 2 / 3
    return torch.where(middle, torch.randint(low, high, (count,)), torch.randint(0, levels, (count,)))


def noise_loss(denoiser: Denoiser, clean: torch.Tensor, labels: torch.Tensor, captions: list[str],
               alphas: torch.Tensor) -> torch.Tensor:
    """Noise MSE divided by what is usual at its noise level, so that every level counts the same.

    The purpose of EDM2's uncertainty weights (Karras et al. 2024, Sec. B.2) with running means in their place: captions
    matter most where noise is high, and there the plain MSE is a hundredth of its value elsewhere. The part labels' loss is
    added where the picture can be seen: it is multiplied by sqrt(alpha_bar). ``clean`` [B, 4, H, W].
    """
    noise, t = torch.randn_like(clean), timesteps(len(clean), len(alphas))
    alpha = alphas[t][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    denoiser.features.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
        made = denoiser(noisy.contiguous(memory_format=torch.channels_last), t, captions)
        parts = part_loss(denoiser, labels)
    error = F.mse_loss(made.float(), noise, reduction="none").mean((1, 2, 3))
    level = t * LEVELS // len(alphas)
    usual = denoiser.typical[level]
    with torch.no_grad():
        for index, value in zip(level.tolist(), error.tolist()):
            denoiser.typical[index].lerp_(torch.tensor(value), 0.01)
    return (error / usual + PART_WEIGHT * alphas[t].sqrt() * parts).mean()


def learn_words(denoiser: Denoiser, data: Dataset, steps: int = 500) -> None:
    """The text encoder alone first learns to say what a caption tells, so that its words differ for the UNet to read.

    The mean of a caption's token states must tell class, both colours, facing and scene, or that it names none.
    """
    prepare_text(denoiser.text)
    answers = [list(CLASSES), ["", *COLOURS], ["", *COLOURS], ["", "left", "right"], ["", *SCENES]]
    heads = nn.Linear(TEXT_WIDTH, sum(map(len, answers)))
    optimiser = torch.optim.AdamW([*denoiser.text.parameters(), *heads.parameters()], lr=1e-3)
    rng = random.Random(0)
    for step in range(steps):
        told = [rng.choice(data.shown).told(rng) for _ in range(32)]
        captions = [caption for caption, _ in told]
        states = denoiser.context(captions)
        guesses = heads(states.sum(1) / states.any(-1).sum(1, keepdim=True)).split([len(a) for a in answers], 1)
        loss = sum(F.cross_entropy(guess, torch.tensor([possible.index(facts[index]) for _, facts in told]))
                   for index, (guess, possible) in enumerate(zip(guesses, answers)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            log.info("words %d/%d loss %.4f", step + 1, steps, loss.item())


def sharpen_cross_attention(denoiser: Denoiser) -> None:
    """Cross-attention anew, with scores large enough to tell words apart from the first step on."""
    for block in denoiser.unet.modules():
        if type(block).__name__ == "BasicTransformerBlock":
            for layer in (block.attn2.to_q, block.attn2.to_k, block.attn2.to_v):
                nn.Linear.reset_parameters(layer)
            for layer in (block.attn2.to_q, block.attn2.to_k):
                layer.weight.data.mul_(2.5)


def train(denoiser: Denoiser, latents: torch.Tensor, data: Dataset, alphas: torch.Tensor, folder: Path, steps: int,
          limit: int | None = None, earlier: Weights | None = None) -> int:
    """Trains up to step ``limit`` of ``steps``; leaves the averaged weights and returns the steps made.

    A new run begins with the ``earlier`` weights of UNet and text encoder if they are given.
    """
    prepare(denoiser)
    if (folder / "denoiser.pt").exists():
        pass
    elif earlier is not None:
        denoiser.unet.load_state_dict(earlier[0])
        denoiser.text.load_state_dict(earlier[1])
    else:
        torch.manual_seed(0)
        learn_words(denoiser, data)
        sharpen_cross_attention(denoiser)
    run = Run("denoiser", folder, denoiser, steps, RATE, DECAYS, network=denoiser.unet)
    alike = data.alike(len(latents))
    while run.step < min(run.steps, limit or run.steps):
        rng = random.Random(run.step)
        torch.manual_seed(run.step)
        batch = pairs(latents, data, alike, rng) if rng.random() < PAIRS else singles(latents, data, rng)
        captions = ["" if rng.random() < CAPTION_DROPOUT else caption for caption in batch.captions]
        run.descend(noise_loss(denoiser, batch.clean, batch.labels, captions, alphas))
    run.finish()
    return run.step


@dataclass(frozen=True, eq=False)
class Batch:
    """Latents [B, 4, H, W], part labels [B, 8 H, 8 W] and captions."""

    clean: torch.Tensor
    labels: torch.Tensor
    captions: list[str]


def singles(latents: torch.Tensor, data: Dataset, rng: random.Random) -> Batch:
    rows = [rng.randrange(len(latents)) for _ in range(BATCH)]
    labels = torch.from_numpy(np.stack([data.labels[row] for row in rows]))
    return Batch(latents[rows].float(), labels, [data.shown[row].caption(rng) for row in rows])


def pairs(latents: torch.Tensor, data: Dataset, alike: list[list[int]], rng: random.Random) -> Batch:
    """Half a batch of diptychs, twice as wide, and their captions, which tell the class and no more.

    Photographs of pairs, flocks and rows teach large models that like things share their colours. Without any such
    picture, self-attention learns to carry colour only as far as one subject's own parts need it.
    """
    rows = [rng.sample(rng.choice(alike), 2) for _ in range(BATCH // 2)]
    clean = torch.stack([torch.cat((latents[left], latents[right]), -1) for left, right in rows]).float()
    labels = torch.from_numpy(np.stack([np.concatenate((data.labels[left], data.labels[right]), 1) for left, right in rows]))
    return Batch(clean, labels, [caption_of(data.shown[left].subject) for left, _ in rows])
