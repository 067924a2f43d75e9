"""Weights of a model by name, and the overrides that take their places during a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

#: weights of a model by name
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A low-rank override W + s B A of the weight W of a linear layer or of a convolution of pictures.

    It is applied as its addition to the layer's output. Neither the sum nor its gradient is ever
    made.
    """

    down: torch.Tensor  # A [r, in], or [r, in, h, w]
    up: torch.Tensor  # B [out, r]
    scale: float

    def added(self, x: torch.Tensor, layer: nn.Module | None = None) -> torch.Tensor:
        """s B A x of inputs [..., in], in their precision and where they are: hosts keep some text encoders on the processor.

        A convolution goes over its inputs [B, in, H, W] as ``layer`` does.
        """
        up = self.up if self.scale == 1 else self.scale * self.up  # smaller than the output
        if not isinstance(layer, nn.Conv2d):
            return F.linear(F.linear(x, self.down.to(x)), up.to(x))
        seen = F.conv2d(x, self.down.to(x), None, layer.stride, layer.padding, layer.dilation)
        return F.conv2d(seen, up.to(x)[..., None, None])

    def matrix(self) -> torch.Tensor:
        """s B A, [out, in], or [out, in * h * w]."""
        return self.scale * self.up @ self.down.flatten(1)

    def detach(self) -> LowRank:
        return LowRank(self.down.detach(), self.up.detach(), self.scale)


#: what takes the place of some weights of a model during a call, by name
WeightOverrides = Mapping[str, torch.Tensor | LowRank]


def dense(base: Weights, overrides: WeightOverrides) -> dict[str, torch.Tensor]:
    """The weights of ``base`` with overrides in their places, low-rank ones added up."""
    return {**base, **{name: base[name] + value.matrix().to(base[name]).view_as(base[name])
                       if isinstance(value, LowRank) else value for name, value in overrides.items()}}
