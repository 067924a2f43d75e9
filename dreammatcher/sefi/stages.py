"""Stages of noise levels, each with a vector for the keys and one for the values of cross-attention.

Five equal stages of the 1000 timesteps and two vectors a stage are the project page's [page]; the stage of a timestep is
ProSpect's [ProSpect].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..training.trainables import Group

STAGES, TIMESTEPS = 5, 1000
HEADS, HEAD_WIDTH, DROPOUT, EXPANSION = 8, 64, 0.1, 4  # of the producer [ProSpect]


def stage_of(timestep: int, stages: int, timesteps: int = TIMESTEPS) -> int:
    """floor(t S / T): 0 is the end of sampling, S - 1 its start [ProSpect]. Raises ValueError for a timestep outside 0..T-1."""
    if not 0 <= timestep < timesteps:
        raise ValueError(f"timestep: {timestep} is outside 0..{timesteps - 1}")
    return timestep * stages // timesteps


def spans(counts: tuple[int, ...], timesteps: int = TIMESTEPS) -> list[tuple[int, int]]:
    """First and last timestep of every span in which no subject changes its stage, for subjects of ``counts`` stages."""
    starts = [t for t in range(timesteps)
              if t == 0 or any(stage_of(t, count, timesteps) != stage_of(t - 1, count, timesteps) for count in counts)]
    return [(start, end - 1) for start, end in zip(starts, [*starts[1:], timesteps])]


class StageVectors(nn.Module):
    """Module that makes the vectors of the stages. Without ``split``, values are read with the vectors of the keys."""

    rate: float
    stages: int
    split: bool

    def table(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors for keys and for values, [S, D] each. ``generator`` draws what training leaves out at random, if anything."""
        raise NotImplementedError

    def groups(self) -> list[Group]:
        return [Group(list(self.parameters()), self.rate)]


class Table(StageVectors):
    """The vectors themselves learn, from a coarse word's own [1, D] on, as in Textual Inversion [inferred]."""

    def __init__(self, initial: torch.Tensor, stages: int, split: bool, rate: float):
        super().__init__()
        self.rate, self.stages, self.split = rate, stages, split
        self.keys = nn.Parameter(initial.detach().float().expand(stages, -1).clone())
        self.values = nn.Parameter(self.keys.detach().clone()) if split else None

    def table(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.keys if self.values is None else self.values


class Producer(StageVectors):
    """A network makes the vectors from a coarse word's frozen vector [page]; after training they are constant, and it is dropped.

    ProSpect's transformer block with an output for each vector [ProSpect], rows 2i and 2i + 1 for keys and values [inferred]. Its
    two attentions see a sequence of length one, where every weight is 1: to_out(to_v(x)) is exactly what they compute, so they
    have no queries and keys here.
    """

    word: torch.Tensor  # [1, D]

    def __init__(self, initial: torch.Tensor, stages: int, split: bool, rate: float, generator: torch.Generator):
        super().__init__()
        self.rate, self.stages, self.split = rate, stages, split
        width, inner, outputs = initial.shape[-1], HEADS * HEAD_WIDTH, stages * (2 if split else 1)
        self.register_buffer("word", initial.detach().float().clone(), persistent=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.to_v = nn.ModuleList(nn.Linear(width, inner, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList(nn.Linear(inner, width) for _ in range(2))
        self.gate, self.out = nn.Linear(width, 2 * EXPANSION * width), nn.Linear(EXPANSION * width, outputs * width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # torch's own range, drawn by this training's generator
                for value in layer.parameters():
                    nn.init.uniform_(value, -(layer.in_features**-0.5), layer.in_features**-0.5, generator)

    def table(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.word
        hidden = x + self._attention(0, self.norms[0](x), generator)
        hidden = hidden + self._attention(1, x, generator)  # keys and values are the word itself, not the state
        value, gate = self.gate(self.norms[2](hidden)).chunk(2, -1)
        vectors = self.out(_dropped(value * F.gelu(gate), generator)).view(self.stages, -1, x.shape[-1])
        return vectors[:, 0], vectors[:, -1]

    def _attention(self, number: int, x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return _dropped(self.to_out[number](self.to_v[number](x)), generator)


def _dropped(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Dropout drawn in main memory by a generator of one's own; none without it."""
    if generator is None:
        return x
    kept = torch.rand(x.shape, generator=generator) >= DROPOUT
    return x * kept.to(x) / (1 - DROPOUT)
