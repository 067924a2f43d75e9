"""Features of the reference, from a pass of the UNet over it, and the store that keeps them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from einops import rearrange

from ..backbones.base import Site
from ..store import RunStore
from ..subject import Subject
from .descriptors import principal_directions

#: bytes of a store that are kept in page-locked memory, from which they travel to CUDA while the model computes; torch may
#: lock up to twice as much, since it rounds up
PINNED = 1 << 30

#: names of the precisions that features are stored in; None keeps the model's own
PRECISIONS = {"model": None, "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

#: something that is done to a tensor
Change = Callable[[torch.Tensor], torch.Tensor]


def moved(x: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Moves ``x`` to a device and a precision. To main memory it travels in that precision, from there as it is stored.

    From page-locked memory to CUDA nothing waits for it.
    """
    if x.device.type != "cpu":
        return x.to(dtype or x.dtype).to(device)
    return x.to(device, non_blocking=device.type == "cuda").to(dtype or x.dtype)


@dataclass(frozen=True, eq=False)
class LowRank:
    """A decoder feature [1, C, H, W] as its mean and its values along its own principal directions."""

    mean: torch.Tensor  # [1, 1, C]
    directions: torch.Tensor  # [C, R]
    values: torch.Tensor  # [1, H * W, R]
    height: int

    @staticmethod
    def of(feature: torch.Tensor, rank: int) -> LowRank | torch.Tensor:
        """``feature`` at ``rank``, or as it is where that saves nothing."""
        tokens = rearrange(feature, "b c h w -> b (h w) c").float()
        if rank * sum(tokens.shape[1:]) >= tokens[0].numel():
            return feature
        mean = tokens.mean(1, keepdim=True)
        directions = principal_directions((tokens - mean)[0], rank)
        mean, directions, values = (part.to(feature.dtype) for part in (mean, directions, (tokens - mean) @ directions))
        return LowRank(mean, directions, values, feature.shape[-2])

    @property
    def device(self) -> torch.device:
        return self.values.device

    def each(self, change: Change) -> LowRank:
        return LowRank(change(self.mean), change(self.directions), change(self.values), self.height)

    def whole(self) -> torch.Tensor:
        tokens = self.mean + self.values @ self.directions.T
        return rearrange(tokens, "b (h w) c -> b c h w", h=self.height)

    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.mean, self.directions, self.values))


@dataclass(frozen=True, eq=False)
class RowFeatures:
    """One row (cond or uncond) of one pass."""

    scales: tuple[torch.Tensor | LowRank, ...]  # decoder features [1, C_l, H_l, W_l], coarse to fine
    hidden: dict[Site, torch.Tensor]  # inputs of self-attention [1, N, C], of the sites that were asked for
    subject: torch.Tensor | None  # soft foreground [1, 1, h, w] at the maps' own size; None on the uncond row

    def each(self, change: Change) -> RowFeatures:
        """The features with every tensor changed."""
        scales = tuple(scale.each(change) if isinstance(scale, LowRank) else change(scale) for scale in self.scales)
        hidden = {layer: change(x) for layer, x in self.hidden.items()}
        return RowFeatures(scales, hidden, None if self.subject is None else change(self.subject))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> RowFeatures:
        return self.each(lambda x: moved(x, torch.device(device), dtype))

    def only(self, sites: frozenset[Site]) -> RowFeatures:
        """The features with no other hidden inputs than those of ``sites``."""
        return replace(self, hidden={site: x for site, x in self.hidden.items() if site in sites})

    def packed(self, rank: int | None) -> RowFeatures:
        """The same with scales at low rank."""
        return self if rank is None else replace(self, scales=tuple(LowRank.of(scale, rank) for scale in self.whole_scales()))

    def unpacked(self) -> RowFeatures:
        return replace(self, scales=tuple(self.whole_scales()))

    def whole_scales(self) -> list[torch.Tensor]:
        """Every scale as a tensor [1, C, H, W]."""
        return [scale.whole() if isinstance(scale, LowRank) else scale for scale in self.scales]

    def bytes(self) -> int:
        scales = sum(scale.bytes() if isinstance(scale, LowRank) else scale.numel() * scale.element_size()
                     for scale in self.scales)
        tensors = [*self.hidden.values(), *([] if self.subject is None else [self.subject])]
        return scales + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class FeatureOptions:
    """Settings for making and storing features."""

    pca: int | None = None  # rank at which each scale is stored; None stores it whole
    device: str = "cpu"  # "cpu" or "model": where the store lives
    dtype: torch.dtype | None = None  # storage precision; None keeps the model's own
    both_rows: bool = False  # ahead of sampling: also for the negative prompt, as a match that shares nothing needs
    noise_levels: int | None = None  # ahead of sampling: at how many; None: at each of the inversion's
    layers: str = ""  # ahead of sampling: numbers of the blocks that will be matched; empty: those that are without a choice

    def __post_init__(self) -> None:
        if self.pca is not None and self.pca < 1:
            raise ValueError(f"pca: {self.pca} is not a positive rank; use 0 in the node to store descriptors whole")
        if self.device not in ("cpu", "model"):
            raise ValueError(f"storage device: {self.device!r} is neither 'cpu' nor 'model'")
        if self.noise_levels is not None and self.noise_levels < 1:
            raise ValueError(f"noise levels: {self.noise_levels} is not at least 1; use 0 in the node for all")

    def chosen(self, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        """``noise_levels`` of some sigmas, evenly from the first to the last, or the one in the middle."""
        count = min(self.noise_levels or len(sigmas), len(sigmas))
        if count == 1:
            return (sigmas[len(sigmas) // 2],)
        return tuple(sigmas[round(number * (len(sigmas) - 1) / (count - 1))] for number in range(count))


class FeatureKey(NamedTuple):
    """The things that features were made by, and their sites."""

    network: str  # identity of what the network computes
    kind: str  # of the row
    sigma: float
    subject: Subject | None
    sites: frozenset[Site]

    def covers(self, other: FeatureKey) -> bool:
        """True if features of this key hold those of the ``other``: of more sites, or of a subject where none is asked for."""
        alike = self[:3] == other[:3] and other.subject in (None, self.subject)
        return alike and self.sites >= other.sites


@dataclass(eq=False)
class FeatureStore(RunStore):
    """Features by what they were made by, shared by every run of one reference, whichever sites it matches."""

    options: FeatureOptions = FeatureOptions()
    capacity: int | None = None  # bytes of its own; None: whoever puts features in says how much there is room for
    sigmas: tuple[float, ...] = ()  # features were made ahead of sampling at these; calls snap to the nearest of them

    def snap(self, sigma: float) -> float:
        """The sigma at which features stand in for those at ``sigma``: the nearest in log distance, if made ahead."""
        return min(self.sigmas, key=lambda stored: abs(math.log(stored) - math.log(max(sigma, 1e-8))), default=sigma)

    def get(self, key: FeatureKey, device: torch.device, dtype: torch.dtype) -> RowFeatures | None:
        """The features of ``key``, also where those of more sites are kept."""
        row = self.find(self._covering(key))
        return None if row is None else row.only(key.sites).to(device, dtype).unpacked()

    def _covering(self, key: FeatureKey) -> FeatureKey:
        if key in self.rows:
            return key
        return next((kept for kept in self.rows if isinstance(kept, FeatureKey) and kept.covers(key)), key)

    def put(self, key: FeatureKey, row: RowFeatures, room: int = 2 << 30) -> None:
        """Keeps the features of a row, within the store's ``capacity`` or else within ``room`` bytes."""
        self.forget(key)
        device = row.scales[0].device
        kept = row.packed(self.options.pca).to("cpu" if self.options.device == "cpu" else device, self.options.dtype)
        size = kept.bytes()
        if not self.make_room(size, room if self.capacity is None else self.capacity):
            return
        if device.type == "cuda" and self.options.device == "cpu" and self.held + size <= PINNED:
            with contextlib.suppress(RuntimeError):  # the system gives no more such memory; it works without
                kept = kept.each(torch.Tensor.pin_memory)
        self.keep(key, kept)
