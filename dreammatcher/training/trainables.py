"""Trainable parts. Each kind says which weights the model sees, which parameters move at which rate, and what is saved.

None of them touches the model: :meth:`weights` gives the tensors that stand in for the model's own during one call.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..weights import LowRank, WeightOverrides, Weights
from .settings import LoraSettings


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that share a learning rate."""

    parameters: list[nn.Parameter]
    rate: float
    until: float = 1.0  # share of the steps in which they learn


class Trainable(nn.Module):
    """Differences to some of a model's weights, in float32 whatever the model's precision."""

    rate: float
    until: float = 1.0  # share of the steps in which it learns

    def weights(self, base: Weights, generator: torch.Generator | None = None) -> WeightOverrides:
        """Overrides for the weights of ``base`` that differ, on their device and in their precision.

        Gradients reach the parameters. With a ``generator`` they are those of one step, of which some may be left out.
        """
        low = self.low_rank(generator)
        return {name: base[name] + difference.to(base[name]).view_as(base[name])
                for name, difference in self.differences(low).items()} | low

    def low_rank(self, generator: torch.Generator | None = None) -> dict[str, LowRank]:
        """The differences that layers add by their factors; with a ``generator`` those of one step."""
        return {}

    def differences(self, but: Container[str] = ()) -> dict[str, torch.Tensor]:
        """All differences, ``but`` some, as whole tensors."""
        raise NotImplementedError

    def whole_names(self) -> tuple[str, ...]:
        """Names of the weights that whole tensors stand in for."""
        return tuple(self.differences(self.low_rank()))

    def groups(self) -> list[Group]:
        return [Group(list(self.parameters()), self.rate, self.until)]

    def size(self) -> int:
        """Count of numbers that learn."""
        return sum(value.numel() for value in self.parameters())


def stored(name: str) -> str:
    """A weight's name as a module may call a part of it."""
    return name.replace(".", "/")  # a parameter's name must hold no dot


class Lora(Trainable):
    """W + (alpha / r) B A (Hu et al. 2021, Eq. 3) for linear layers and convolutions.

    A is drawn from a normal distribution of deviation 1 / r and B is zero, so training begins with the plain model. A
    convolution's A has its kernel and B is 1 x 1, as every loader expects. ``dropout`` is the share of ranks that a step leaves
    out, in each layer others, the rest being scaled up for them (kohya's rank_dropout, which draws them for every picture).
    Raises ValueError for weights that are no matrices.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], settings: LoraSettings, rate: float, generator: torch.Generator,
                 dropout: float = 0.0):
        super().__init__()
        self.settings, self.rate, self.shapes, self.dropout = settings, rate, dict(shapes), dropout
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, shape in self.shapes.items():
            if len(shape) < 2:
                raise ValueError(f"{name}: a weight of shape {tuple(shape)} has no rows and columns to be of low rank")
            rank = settings.rank
            drawn = torch.randn(rank, *shape[1:], generator=generator) / rank
            self.down[stored(name)] = nn.Parameter(drawn)
            self.up[stored(name)] = nn.Parameter(torch.zeros(shape[0], rank))

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Factors by name: (A [r, in, ...], B [out, r])."""
        return {name: (self.down[stored(name)], self.up[stored(name)]) for name in self.shapes}

    def low_rank(self, generator: torch.Generator | None = None) -> dict[str, LowRank]:
        return {name: LowRank(down, self._left(up, generator), self.settings.scale)
                for name, (down, up) in self.factors().items() if down.ndim in (2, 4)}

    def _left(self, up: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """B [out, r] without the ranks that a step leaves out."""
        if generator is None or not self.dropout:
            return up
        kept = torch.rand(up.shape[1], generator=generator) >= self.dropout
        return up * (kept.to(up) / (1 - self.dropout))

    def differences(self, but: Container[str] = ()) -> dict[str, torch.Tensor]:
        return {name: self.settings.scale * up @ down.flatten(1)
                for name, (down, up) in self.factors().items() if name not in but}


class Full(Trainable):
    """Differences to whole weights, all zero at first."""

    def __init__(self, shapes: Mapping[str, torch.Size], rate: float):
        super().__init__()
        self.rate = rate
        self.delta = nn.ParameterDict({stored(name): nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()})

    def differences(self, but: Container[str] = ()) -> dict[str, torch.Tensor]:
        return {name.replace("/", "."): value for name, value in self.delta.items()}


class TokenRows(nn.Module):
    """Rows of a token table for words that it does not have yet, [vectors, width]. Other rows are not touched."""

    def __init__(self, first: torch.Tensor, rate: float):
        super().__init__()
        self.rate = rate
        self.rows = nn.Parameter(first.detach().clone().float())

    def groups(self) -> list[Group]:
        return [Group([self.rows], self.rate)]
