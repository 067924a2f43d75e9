"""State of one sampling run, and the work of one UNet call in it.

A *run* is made when sampling starts and released when it ends. A *call* is one forward of the UNet: it may hold cond and
uncond rows in any order, several pictures each, and it is not a step: samplers call as often as they like. Everything
goes by sigma.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..appearance import match_appearance, trusted
from ..correspondence import Match, confidence, match
from ..descriptors import descriptors, resize
from ..features import COND, UNCOND, FeatureStore, Layer, RowFeatures
from ..foreground import foreground, otsu
from ..reference import Reference
from ..settings import MATCHED_EVERYWHERE, REPLACED, ApplySettings, MaskSettings, Snapshot, Trace
from .capture import SubjectMaps, reference_pass
from .structure import Structure, halved

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that does not change while sampling."""

    base: torch.nn.Module
    structure: Structure
    layers: tuple[Layer, ...]
    reference: Reference
    store: FeatureStore
    mask: MaskSettings
    settings: ApplySettings
    trace: Trace

    def __deepcopy__(self, memo: dict) -> Plan:
        return self


@dataclass(eq=False)
class Run:
    """What carries over from call to call."""

    plan: Plan
    weights: object  # identity of the weights, part of the feature store's keys
    sigma_start: float
    sigma_end: float
    levels: dict[str, tuple[float, tuple[torch.Tensor, ...]]] = field(default_factory=dict)  # row -> decoder features
    maps: torch.Tensor | None = None  # the last complete cond foreground, for uncond rows that come in their own call
    prompts: set = field(default_factory=set)  # prompt types seen, where the host has no start-of-sampling hook
    references: dict[tuple, RowFeatures] = field(default_factory=dict)  # of the current sigma, on the device

    def active(self, sigma: float) -> bool:
        return self.sigma_end <= sigma <= self.sigma_start and self.plan.settings.strength > 0

    def skip(self, reason: str) -> None:
        """Says once per run why something was left out."""
        if reason not in self.plan.trace.skipped:
            self.plan.trace.skipped.append(reason)
            log.warning("DreamMatcher: %s", reason)

    def reference_features(self, kind: str, sigma: float, like: torch.Tensor) -> RowFeatures:
        """Features of the reference at ``sigma``: from this step, from the store, or from a pass of the UNet."""
        plan = self.plan
        if plan.store.prepared:
            sigma = plan.reference.trajectory.nearest(sigma)
        subject = plan.mask.reference_subject or plan.reference.subject
        key = (self.weights, kind, sigma, subject)
        if key not in self.references:
            row = plan.store.get(key, like.device, like.dtype)
            if row is None:
                row = reference_pass(plan.base, plan.structure, plan.reference, kind, subject, sigma, like.device)
                plan.store.put(key, row)
                row = row.to(like.device, like.dtype)
            self.references = {known: value for known, value in self.references.items() if known[2] == sigma}
            self.references[key] = row
        return self.references[key]


@dataclass(eq=False)
class Call:
    """One forward of the UNet."""

    run: Run
    sigma: float
    kinds: tuple[str, ...]  # of each chunk of the batch
    latent_size: tuple[int, int]
    readers: SubjectMaps | None
    maps: list[torch.Tensor] = field(default_factory=list)  # [B_cond, 1, h, w] of the layers run so far
    levels: dict[int, torch.Tensor] = field(default_factory=dict)
    matches: dict[tuple, Match] = field(default_factory=dict)

    def rows(self, chunk: int, batch: int) -> slice:
        size = batch // len(self.kinds)
        return slice(chunk * size, (chunk + 1) * size)

    def read_map(self, layer: Layer, query: torch.Tensor, context: torch.Tensor) -> None:
        """Keeps the subject map of the first cond chunk, if this layer is one that is read."""
        if self.readers is None or layer not in self.readers.modules or COND not in self.kinds:
            return
        rows = self.rows(self.kinds.index(COND), query.shape[0])
        found = self.readers.read(layer, query[rows], context[rows], self.latent_size)
        if found is None:
            self.run.skip(f"another pack changed the token count of {layer}; its subject map is not used")
        else:
            self.maps.append(found)

    def keep_level(self, number: int, h: torch.Tensor) -> None:
        """Keeps a decoder feature; with the last one, the call's features become those that the next calls match."""
        self.levels[number] = h.clone()
        if number != self.run.plan.structure.taps[-1]:
            return
        levels = tuple(self.levels[tap] for tap in self.run.plan.structure.taps)
        for chunk, kind in enumerate(self.kinds):
            if kind not in self.kinds[:chunk] and self.run.levels.get(kind, (None,))[0] != self.sigma:
                self.run.levels[kind] = (self.sigma, tuple(level[self.rows(chunk, level.shape[0])] for level in levels))

    def inject(self, layer: Layer, context: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Context and value of one self-attention layer, [batch, N, C], with the reference's appearance matched in."""
        grid = halved(self.latent_size, self.run.plan.structure.self_attention[layer])
        if value.shape[1] != grid[0] * grid[1]:
            self.run.skip(f"another pack changed the token count of {layer} to {value.shape[1]} from {grid[0] * grid[1]}; "
                          "the layer is left as it is")
            return context, value
        if self.run.plan.settings.injection == REPLACED:
            return self._replace(layer, context, value)
        size = value.shape[0] // len(self.kinds)
        weight_for_all = self._foreground(grid, size, value.device)
        if weight_for_all is None:
            return context, value
        chunks = []
        for chunk, kind in enumerate(self.kinds):
            rows = self.rows(chunk, value.shape[0])
            chunks.append(self._match_chunk(layer, kind, grid, value[rows], weight_for_all))
        return context, torch.cat(chunks)

    def _match_chunk(
        self, layer: Layer, kind: str, grid: tuple[int, int], value: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        found = self._match(kind, grid, value)
        if found is None:
            return value
        plan = self.run.plan
        if plan.settings.injection == MATCHED_EVERYWHERE:
            weight = torch.full_like(mask, plan.settings.strength)
        else:
            sure = confidence(found, mask, plan.mask.threshold)
            weight = trusted(mask, sure, plan.settings.strength)
            if kind == COND and layer == plan.layers[-1]:
                self._record(found, mask, sure)
        reference = self.run.reference_features(kind, self.sigma, value)
        return match_appearance(value, reference.hidden[layer], found.indices(), weight)

    def _match(self, kind: str, grid: tuple[int, int], value: torch.Tensor) -> Match | None:
        """Correspondence at one grid: once per call, grid and row. None on the first call, which has no features yet."""
        if kind not in self.run.levels:
            return None
        levels = self.run.levels[kind][1]
        if levels[0].shape[0] != value.shape[0]:
            return None
        key = (kind, grid)
        if key not in self.matches:
            reference = self.run.reference_features(kind, self.sigma, value)
            described = self.matches.get((kind, "descriptors"))
            if described is None:
                described = descriptors(list(reference.levels), list(levels), pca=self.run.plan.store.options.pca)
                self.matches[(kind, "descriptors")] = described
            source, wanted = described
            level = next(own for own in self.run.plan.structure.self_attention.values()
                         if halved(self.latent_size, own) == grid)
            reference_grid = halved(tuple(self.run.plan.reference.latent.shape[-2:]), level)
            self.matches[key] = match(resize(source, reference_grid), resize(wanted, grid),
                                      reference_mask=self._reference_limit(reference_grid, value.device))
        return self.matches[key]

    def _reference_limit(self, grid: tuple[int, int], device: torch.device) -> torch.Tensor | None:
        mask = self.run.plan.mask.reference_mask
        if mask is None:
            return None
        coarse = F.adaptive_max_pool2d(mask.to(device), grid)
        return (coarse > 0.5).float()

    def _foreground(self, grid: tuple[int, int], size: int, device: torch.device) -> torch.Tensor | None:
        """M at one grid, [size, 1, H, W]; None while no map of the target is known."""
        settings = self.run.plan.mask
        if settings.target_mask is not None:
            given = settings.target_mask.to(device)
            given = given[torch.arange(size, device=device) % given.shape[0]]
            soft = F.interpolate(given, size=grid, mode="area")
        elif self.maps or (self.run.maps is not None and self.run.maps.shape[0] == size):
            if self.maps:
                self.run.maps = foreground(self.maps, self.maps[0].shape[-2:])
            soft = F.interpolate(self.run.maps, size=grid, mode="nearest")
        else:
            return None
        return otsu(soft) if settings.otsu else soft

    def _replace(self, layer: Layer, context: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ablation: keys and values of the reference as they are (MasaCtrl, Cao et al. 2023)."""
        size = value.shape[0] // len(self.kinds)
        hidden = [self.run.reference_features(kind, self.sigma, value).hidden[layer].expand(size, -1, -1)
                  for kind in self.kinds]
        return torch.cat(hidden), torch.cat(hidden)

    def _record(self, found: Match, mask: torch.Tensor, sure: torch.Tensor) -> None:
        plan = self.run.plan
        row = self.run.reference_features(COND, self.sigma, mask)
        reference_mask = plan.mask.reference_mask if plan.mask.reference_mask is not None else row.subject
        plan.trace.snapshots[self.sigma] = Snapshot(
            self.sigma, mask, reference_mask, sure, found.flow, found.reference_size)


def kinds_of(cond_or_uncond: list[int]) -> tuple[str, ...]:
    """Row of each chunk: 0 is the positive prompt, everything else goes with the negative one."""
    return tuple(COND if index == 0 else UNCOND for index in cond_or_uncond)
