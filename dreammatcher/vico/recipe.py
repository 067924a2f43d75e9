"""Training (Sec. 3.4): the image-attention blocks and one new word learn a subject; the model itself stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from ..backbones.base import Site
from ..finite import demand
from ..subject import Conditioning
from ..training.data import LatentSet
from ..training.denoising import Around, FrozenModel, errors
from ..training.parallel import ALONE, Share
from ..training.ranges import check
from ..training.recipe import LOSS_SCALE
from ..training.settings import ObjectiveSettings
from ..training.trainables import Group, TokenRows
from ..weights import WeightOverrides
from .block import ImageAttention
from .loss import WEIGHT, regularisation
from .mask import column, subject_mask


@dataclass(frozen=True)
class VicoSettings:
    """Settings of ViCo's training. Defaults are those of the authors' code for 4 pictures a step."""

    word_rate: float = 2e-2  # their 5e-3 times GPUs and pictures (scale_lr), which are 4 on their machine
    block_rate: float = 1e-5
    regularisation: float = WEIGHT
    masked: bool = True  # blocks see the subject of the reference only
    zero: bool = False  # blocks begin as an identity, which is not the authors'

    def __post_init__(self) -> None:
        for name in ("word_rate", "block_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside 0..1; ViCo takes 0.02 for the word and 0.00001 for "
                                 "the blocks")
        check("regularisation", self.regularisation, 0, 100, "0 turns it off")


@dataclass(frozen=True, eq=False)
class SiteOutput:
    """Output of one site of the frozen UNet for a reference."""

    states: torch.Tensor  # [B, M, D], behind the text block
    attention: torch.Tensor  # [B, M, T], of its patches to the prompt, mean over the heads


class LookingDenoiser(FrozenModel, Protocol):
    """A frozen model that lets itself be changed behind some of its text blocks."""

    def places(self, captions: list[str], word: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of ``word`` in each caption's conditioning, int64 [B, V], and of the first end token [B, 1]."""

    def look(self, reference: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> dict[Site, SiteOutput]:
        """The sites' view of a clean ``reference`` [B, C, h, w], told that it is as noisy as the picture is."""

    def predict_changed(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning,
                        changes: Mapping[Site, Callable[[torch.Tensor], torch.Tensor]]) -> torch.Tensor:
        """The UNet's prediction when its states [B, N, D] behind the text blocks of some sites are changed."""


Learner = TypeVar("Learner", bound=LookingDenoiser)


@dataclass(eq=False)
class Looking(Around):
    """The model with its blocks and a reference for each picture.

    Attention maps of the last prediction are left in ``maps``: placeholder and end token [B, M] at each site.
    """

    model: LookingDenoiser
    blocks: Mapping[Site, ImageAttention]
    references: torch.Tensor  # [B, C, h, w]
    places: tuple[torch.Tensor, torch.Tensor]
    masked: bool
    maps: list[tuple[torch.Tensor, torch.Tensor]]

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning,
                weights: WeightOverrides) -> torch.Tensor:
        seen = self.model.look(self.references.to(noisy.device), timesteps, conditioning)
        self.maps, changes = [], {}
        for site, block in self.blocks.items():
            placeholder, end = (column(seen[site].attention, places) for places in self.places)
            self.maps.append((placeholder, end))
            mask = subject_mask(placeholder) if self.masked else None
            changes[site] = partial(block, reference=seen[site].states.float(), mask=mask)
        return self.model.predict_changed(noisy, timesteps, conditioning, changes)


class VicoRecipe(Generic[Learner]):
    """L = ||eps - eps_theta(x_t, t, c; reference)||^2 + w sum over the sites of the alignment (Eq. 5 to 7).

    Each picture is drawn with another one of the set as its reference, with the same prompt and timestep and without noise.
    """

    unet = text = None  # nothing of the model learns
    streams = 2  # the picture and its reference

    def __init__(self, model: Learner, subject_set: LatentSet, word: str, rows: TokenRows,
                 blocks: Mapping[Site, ImageAttention], settings: VicoSettings, objective: ObjectiveSettings):
        self.model, self.subject_set, self.word = model, subject_set, word
        self.rows, self.blocks, self.settings, self.objective = {word: rows}, dict(blocks), settings, objective
        half = any(value.dtype == torch.float16 for value in (*model.unet.values(), *model.text.values()))
        self.scale = LOSS_SCALE if half else 1.0
        self.learned = nn.ModuleDict({"word": rows, **{str(site[1]): block for site, block in blocks.items()}})

    def groups(self) -> list[Group]:
        parameters = [value for block in self.blocks.values() for value in block.parameters()]
        return [*self.rows[self.word].groups(), Group(parameters, self.settings.block_rate)]

    def loss(self, batch: int, generator: torch.Generator, share: Share = ALONE) -> torch.Tensor:
        drawn, references = self.subject_set.draw_with_references(batch * share.processes, generator)
        rows = share.rows(len(drawn.captions))
        conditioning = self.model.encode(drawn.said(rows), None, self.rows)
        looking = self.looking(drawn.said(rows), references[rows])
        error, weight = errors(looking, drawn, conditioning, {}, self.objective, generator, rows)
        loss = (error * weight).mean()
        if not self.settings.regularisation:
            return loss
        kept = regularisation(looking.maps)
        demand(kept, "regularisation: it")
        return loss + self.settings.regularisation * kept

    def looking(self, captions: list[str], references: torch.Tensor) -> Looking:
        """The model as it is now, with a reference [B, C, h, w] for each caption."""
        return Looking(self.model, self.blocks, references, self.model.places(captions, self.word), self.settings.masked, [])

    def reading(self, prompt: str) -> Conditioning:
        """A prompt as the text encoder reads it now."""
        return self.model.encode([prompt], None, self.rows)

    def showing(self, prompt: str) -> tuple[Looking, Looking]:
        """The model as it is now, for drawing ``prompt``, twice: it looks at the first picture of the set, for the empty prompt
        too where the word stands in ``prompt``."""
        looking = self.looking([prompt], self.subject_set.examples[0].latents[:1])
        return looking, looking
