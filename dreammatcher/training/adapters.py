"""Other forms of a LoRA: DoRA, LoHa and LoKr, by the names and formulas of LyCORIS, which the hosts' loaders know.

Each gives the whole weight that the model sees. It is made again for the gradient, so that no step keeps more than the factors.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..weights import WeightOverrides, Weights
from .details import DORA, LOHA, LOKR
from .settings import LoraSettings
from .trainables import Trainable, stored

#: what a file's tensor of DoRA's magnitudes is called behind its weight's name
MAGNITUDES = "dora_scale"


@dataclass(frozen=True, eq=False)
class Factors:
    """The tensors of one weight in a file, by the ends of their names: a change of another form than a pair of factors."""

    algorithm: str
    tensors: Mapping[str, torch.Tensor]
    alpha: float | None


class Adapter(Trainable):
    """A change to some weights of a model by the factors of a form. ``algorithm`` is its name.

    Factors are parameters by the ends of their names in files, those in ``own`` of each weight; ``shapes`` are the weights'.
    """

    algorithm: str
    multiplied = ""  # the factor that a scale goes into

    def __init__(self, shapes: Mapping[str, torch.Size], settings: LoraSettings, rate: float):
        super().__init__()
        self.settings, self.rate, self.shapes = settings, rate, dict(shapes)
        self.own = nn.ModuleDict({stored(name): nn.ParameterDict() for name in self.shapes})
        for name, shape in self.shapes.items():
            if len(shape) < 2:
                raise ValueError(f"{name}: a weight of shape {tuple(shape)} has no rows and columns to be of low rank")

    def parts(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters of a weight, by the ends of the names in files."""
        return {end.replace("/", "."): value for end, value in self._own(name).items()}

    def _own(self, name: str) -> nn.ParameterDict:
        own = self.own[stored(name)]
        assert isinstance(own, nn.ParameterDict)
        return own

    def factors(self, name: str) -> dict[str, torch.Tensor]:
        """The factors of a weight by the ends of their names."""
        return dict(self.parts(name))

    def begins(self, name: str, factors: Mapping[str, torch.Tensor]) -> None:
        """Makes parameters of ``factors``."""
        for end, value in factors.items():
            self._own(name)[stored(end)] = nn.Parameter(value)

    def scale(self, factors: Mapping[str, torch.Tensor]) -> float:
        """The factor in front of the product."""
        return self.settings.scale

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a weight in a file, by the ends of their names."""
        factors = self.factors(name)
        return {**factors, "alpha": torch.tensor(float(self.scale(factors) * self.settings.rank))}

    def difference(self, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """s times the product of the factors, [out, in * ...]."""
        raise NotImplementedError

    def whole(self, weight: torch.Tensor, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weight that the model sees in place of ``weight``, in float32."""
        return weight.float() + self.difference(factors).view_as(weight)

    def weights(self, base: Weights, generator: torch.Generator | None = None) -> WeightOverrides:
        return {name: self._made(base[name], self.drawn(self.factors(name), generator)) for name in self.shapes}

    def drawn(self, factors: dict[str, torch.Tensor], generator: torch.Generator | None) -> dict[str, torch.Tensor]:
        """The factors of one step."""
        return factors

    def _made(self, weight: torch.Tensor, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ends = list(factors)

        def make(*values: torch.Tensor) -> torch.Tensor:
            with torch.autocast(weight.device.type, enabled=False):
                return self.whole(weight, dict(zip(ends, values, strict=True))).to(weight)

        here = [value.to(weight.device) for value in factors.values()]
        return checkpoint(make, *here, use_reentrant=False, preserve_rng_state=False)

    def whole_names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def differences(self, but: Container[str] = ()) -> dict[str, torch.Tensor]:
        return {name: self.difference(self.factors(name)) for name in self.shapes if name not in but}

    def begin(self, name: str, change: Factors) -> None:
        """Takes the factors of a file for a weight. Raises ValueError, naming it, for factors of other sizes."""
        own = self.parts(name)
        if {end: _size(value) for end, value in own.items()} != {end: _size(value) for end, value in change.tensors.items()}:
            raise ValueError(f"{name}: its factors are {_said(change.tensors)} there and {_said(own)} here; set rank as it was")
        for end, value in own.items():
            value.data.copy_(change.tensors[end].float().view_as(value))
        if self.multiplied in own and change.alpha is not None:
            own[self.multiplied].data.mul_(change.alpha / self.settings.rank / self.scale(own))


class Dora(Adapter):
    """m (W + s B A) / ||W + s B A|| with norms over each input's column (Liu et al. 2024, Eq. 5), held constant for the gradient
    (Sec. 4.3).

    m is a magnitude for each input, ||W|| at first; what learns is its difference to that. ``weights`` are those that it changes;
    ``dropout`` is a LoRA's.
    """

    algorithm, multiplied = DORA, "lora_up.weight"

    def __init__(self, weights: Weights, settings: LoraSettings, rate: float, generator: torch.Generator, dropout: float = 0.0):
        super().__init__({name: value.shape for name, value in weights.items()}, settings, rate)
        self.dropout = dropout
        for name, value in weights.items():
            rank, first = settings.rank, column_norms(value.detach().float().cpu())
            self.register_buffer(f"first_{stored(name)}", first)
            self.begins(name, {"lora_down.weight": torch.randn(rank, *value.shape[1:], generator=generator) / rank,
                               "lora_up.weight": torch.zeros(value.shape[0], rank), MAGNITUDES: torch.zeros_like(first)})

    def factors(self, name: str) -> dict[str, torch.Tensor]:
        own = self.parts(name)
        return {**own, MAGNITUDES: own[MAGNITUDES] + self.get_buffer(f"first_{stored(name)}")}

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        own = super().tensors(name)
        up, down = own["lora_up.weight"], own["lora_down.weight"]
        return {**own, "lora_up.weight": up.view(*up.shape, *[1] * (down.ndim - 2))}

    def drawn(self, factors: dict[str, torch.Tensor], generator: torch.Generator | None) -> dict[str, torch.Tensor]:
        if generator is None or not self.dropout:
            return factors
        up = factors["lora_up.weight"]
        kept = torch.rand(up.shape[1], generator=generator) >= self.dropout
        return {**factors, "lora_up.weight": up * (kept.to(up) / (1 - self.dropout))}

    def difference(self, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.settings.scale * factors["lora_up.weight"] @ factors["lora_down.weight"].flatten(1)

    def whole(self, weight: torch.Tensor, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        changed = super().whole(weight, factors)
        return changed * (factors[MAGNITUDES] / column_norms(changed.detach()))

    def begin(self, name: str, change: Factors) -> None:
        super().begin(name, change)
        self.parts(name)[MAGNITUDES].data.sub_(self.get_buffer(f"first_{stored(name)}"))


class Loha(Adapter):
    """W + s (A1 B1) * (A2 B2), entry by entry (FedPara, Hyeon-Woo et al. 2022), whose rank is up to the square of theirs."""

    algorithm, multiplied = LOHA, "hada_w1_a"

    def __init__(self, shapes: Mapping[str, torch.Size], settings: LoraSettings, rate: float, generator: torch.Generator):
        super().__init__(shapes, settings, rate)
        for name, shape in self.shapes.items():
            rank, columns = settings.rank, math.prod(shape[1:])
            self.begins(name, {"hada_w1_a": 0.1 * torch.randn(shape[0], rank, generator=generator),
                               "hada_w1_b": torch.randn(rank, columns, generator=generator),
                               "hada_w2_a": torch.zeros(shape[0], rank),
                               "hada_w2_b": torch.randn(rank, columns, generator=generator)})

    def difference(self, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.settings.scale * (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"])


class Lokr(Adapter):
    """W + s C (x) (A B), a Kronecker product (KronA, Edalati et al. 2022; LyCORIS, Yeh et al. 2024).

    C [a, b] is whole; A B of the rest is whole too where the rank saves nothing, and not scaled then.
    """

    algorithm, multiplied = LOKR, "lokr_w2_a"

    def __init__(self, shapes: Mapping[str, torch.Size], settings: LoraSettings, rate: float, generator: torch.Generator):
        super().__init__(shapes, settings, rate)
        for name, shape in self.shapes.items():
            (rows, rest), (columns, inner) = divided(shape[0]), divided(shape[1])
            width, rank = inner * math.prod(shape[2:]), settings.rank
            first = {"lokr_w1": (2 * torch.rand(rows, columns, generator=generator) - 1) / columns**0.5}
            if rank < max(rest, inner) / 2:
                drawn = (2 * torch.rand(rank, width, generator=generator) - 1) / width**0.5
                self.begins(name, {**first, "lokr_w2_a": torch.zeros(rest, rank), "lokr_w2_b": drawn})
            else:
                self.begins(name, {**first, "lokr_w2": torch.zeros(rest, width)})

    def scale(self, factors: Mapping[str, torch.Tensor]) -> float:
        return 1.0 if "lokr_w2" in factors else self.settings.scale

    def difference(self, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        second = factors["lokr_w2"] if "lokr_w2" in factors else factors["lokr_w2_a"] @ factors["lokr_w2_b"]
        return torch.kron(factors["lokr_w1"], self.scale(factors) * second)


def adapter_of(algorithm: str, weights: Weights, settings: LoraSettings, rate: float, generator: torch.Generator,
               dropout: float = 0.0) -> Adapter:
    """An adapter of a form to all ``weights``."""
    if algorithm == DORA:
        return Dora(weights, settings, rate, generator, dropout)
    kind = {LOHA: Loha, LOKR: Lokr}[algorithm]
    return kind({name: value.shape for name, value in weights.items()}, settings, rate, generator)


def column_norms(weight: torch.Tensor) -> torch.Tensor:
    """Norms of a weight [out, in, ...] over all but its inputs, [1, in, 1, ...]."""
    norms = weight.transpose(0, 1).flatten(1).norm(dim=1)
    return norms.view(1, -1, *[1] * (weight.ndim - 2)) + torch.finfo(weight.dtype).eps


def divided(size: int) -> tuple[int, int]:
    """Two factors of a size that are as near to each other as can be, the smaller first (LyCORIS, factor -1)."""
    small = next(factor for factor in range(math.isqrt(size), 0, -1) if size % factor == 0)
    return small, size // small


def _size(value: torch.Tensor) -> tuple[int, ...]:
    """A factor's size, but for a kernel of one cell: files of linear layers and of such convolutions differ in that."""
    return tuple(side for place, side in enumerate(value.shape) if place < 2 or side != 1)


def _said(factors: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{end} {'x'.join(map(str, value.shape))}" for end, value in factors.items())
