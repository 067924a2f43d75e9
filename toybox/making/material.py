"""Training data of the denoiser, as tensors on its device, and the batches drawn from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange

from .captions import Captions, facts_of, told
from .dataset import Dataset

CAPTION_DROPOUT = 0.11


@dataclass(frozen=True, eq=False)
class Batch:
    """Latents [B, 4, H, W], the part in the middle of every cell by cells a side, and numbers of captions [B]."""

    clean: torch.Tensor
    parts: dict[int, torch.Tensor]  # cells a side -> [B, side, side or 2 side]
    captions: torch.Tensor


@dataclass(frozen=True, eq=False)
class Material:
    """N training pictures."""

    latents: torch.Tensor  # float16 [N, 4, 16, 16]
    parts: dict[int, torch.Tensor]  # cells a side -> uint8 [N, side, side]
    facts: torch.Tensor  # [N, 4], see captions.ANSWERS
    alike: torch.Tensor  # [G, M]: pictures of subjects with one class and the same colour names, padded with -1
    counts: torch.Tensor  # [G]
    empty: int  # number of the empty caption

    def singles(self, count: int) -> Batch:
        """``count`` pictures with captions that leave out what captions leave out."""
        rows = self._random(count, len(self.latents))
        return self.shown(rows, told(self.facts[rows]))

    def shown(self, rows: torch.Tensor, facts: torch.Tensor) -> Batch:
        """The pictures ``rows`` [B] with captions that tell ``facts`` [B, 4], some of them empty."""
        return Batch(self.latents[rows].float(), {side: parts[rows] for side, parts in self.parts.items()},
                     self._dropped(Captions.numbers(facts)))

    def pairs(self, count: int) -> Batch:
        """``count`` diptychs, twice as wide, with captions that tell the class and no more.

        Photographs of pairs, flocks and rows teach large models that like things share their colours. Without any such
        picture, self-attention learns to carry colour only as far as one subject's own parts need it.
        """
        group = self._random(count, len(self.alike))
        size = self.counts[group]
        left = self._below(size)
        right = (left + 1 + self._below(size - 1)) % size
        rows = torch.stack((self.alike[group, left], self.alike[group, right]), 1)
        class_only = torch.zeros_like(self.facts[rows[:, 0]])
        class_only[:, 0] = self.facts[rows[:, 0], 0]
        return Batch(side_by_side(self.latents[rows].float()),
                     {side: side_by_side(parts[rows]) for side, parts in self.parts.items()},
                     self._dropped(Captions.numbers(class_only)))

    def _random(self, count: int, below: int) -> torch.Tensor:
        return torch.randint(below, (count,), device=self.latents.device)

    @staticmethod
    def _below(limits: torch.Tensor) -> torch.Tensor:
        """A random whole number below each limit."""
        return torch.minimum((torch.rand(limits.shape, device=limits.device) * limits).long(), limits - 1)

    def _dropped(self, captions: torch.Tensor) -> torch.Tensor:
        dropped = torch.rand(captions.shape, device=captions.device) < CAPTION_DROPOUT
        return captions.masked_fill(dropped, self.empty)


def side_by_side(pairs: torch.Tensor) -> torch.Tensor:
    """[B, 2, ..., H, W] -> [B, ..., H, 2 W]."""
    return torch.cat(pairs.unbind(1), -1)


def middles(labels: torch.Tensor, side: int) -> torch.Tensor:
    """The label in the middle of each of ``side`` x ``side`` cells, [N, H, W] -> [N, side, side]."""
    cell = labels.shape[-1] // side
    return rearrange(labels, "n (y a) (x b) -> a b n y x", a=cell, b=cell)[cell // 2, cell // 2].contiguous()


def material(data: Dataset, latents: torch.Tensor, sides: Iterable[int], empty: int, device: torch.device) -> Material:
    """The pictures that have ``latents`` [N, 4, 16, 16]."""
    labels = torch.from_numpy(data.labels[:len(latents)])
    groups = data.alike(len(latents))
    rows = torch.full((len(groups), max(map(len, groups))), -1)
    for group, members in enumerate(groups):
        rows[group, :len(members)] = torch.tensor(members)
    facts = torch.tensor([facts_of(one.subject, one.pose, one.scene) for one in data.shown[:len(latents)]])
    return Material(latents.to(device), {side: middles(labels, side).to(device) for side in sides}, facts.to(device),
                    rows.to(device), torch.tensor([len(members) for members in groups], device=device), empty)
