"""A word that SeFi-IDE has learned: the vectors of its stages. Names are this pack's own; there is no official format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..uncopied import Uncopied

KEYS, VALUES = "sefi.k", "sefi.v"
FORMAT = "sefi-ide"


@dataclass(frozen=True, eq=False)
class SeFi(Uncopied):
    """A subject as SeFi-IDE knows it. Fits every model whose words have its width. A copy of it is itself.

    Raises ValueError for vectors that are not finite, or of different shapes.
    """

    keys: torch.Tensor  # [S, D], the first of the end of sampling
    values: torch.Tensor  # [S, D]
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in ((KEYS, self.keys), (VALUES, self.values)):
            if value.ndim != 2 or not value.numel():
                raise ValueError(f"{name} is {'x'.join(map(str, value.shape)) or 'a number'}, not stages x width")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if self.keys.shape != self.values.shape:
            raise ValueError(f"{KEYS} and {VALUES} are of different shapes, {tuple(self.keys.shape)} and "
                             f"{tuple(self.values.shape)}")

    @property
    def word(self) -> str:
        return self.about.get("word", "")

    def at(self, stage: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors [1, D] for keys and for values of a stage."""
        return self.keys[stage][None], self.values[stage][None]

    def fallback(self) -> torch.Tensor:
        """One vector [1, D] for hosts without this pack, as a plain embedding: the mean of the keys' [inferred]."""
        return self.keys.mean(0, keepdim=True)
