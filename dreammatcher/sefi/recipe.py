"""Training: the vectors of the stages learn one picture of the subject; everything of the model stays as it is [page].

L = ||eps - eps_theta(x_t, t; E_i^K, E_i^V)||^2 + lambda L_attention, where i is the stage of t, and E_i^K and E_i^V are the
prompt with the stage's vectors in the word's place, through the whole text encoder [page].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import torch
from torch import nn

from ..finite import NotFinite, demand
from ..subject import Conditioning
from ..training.data import LatentSet
from ..training.denoising import CAPTION, Around, Denoiser, errors
from ..training.parallel import ALONE, Share
from ..training.ranges import check
from ..training.recipe import LOSS_SCALE, Learner
from ..training.settings import ObjectiveSettings
from ..training.trainables import Group
from ..weights import WeightOverrides
from .attention_loss import AttentionLoss, Watching
from .stages import STAGES, StageVectors, stage_of

NETWORK, TABLE = "network", "table"


@dataclass(frozen=True)
class SefiSettings:
    """Settings of SeFi-IDE: what learns, and how fast."""

    stages: int = STAGES  # [page]
    split: bool = True  # vectors of their own for values [page]
    kind: str = NETWORK  # [page]; the table is [inferred]
    rate: float = 1e-4  # of the network [ProSpect]; 5e-3 suits the table [inferred]

    def __post_init__(self) -> None:
        check("stages", self.stages, 1, 1000)
        if self.kind not in (NETWORK, TABLE):
            raise ValueError(f"kind: {self.kind!r} is neither {NETWORK!r} nor {TABLE!r}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} is outside 0..1; 0.0001 suits the network, 0.005 the table")


class SefiRecipe(Generic[Learner]):
    """The vectors of the stages, and the attention loss if it is wanted."""

    unet = text = None
    streams = 1

    def __init__(self, model: Learner, subject_set: LatentSet, word: str, vectors: StageVectors, objective: ObjectiveSettings,
                 attention: AttentionLoss | None):
        self.model, self.subject_set, self.word, self.vectors = model, subject_set, word, vectors
        self.objective, self.attention = objective, attention
        half = any(value.dtype == torch.float16 for value in (*model.unet.values(), *model.text.values()))
        self.scale = LOSS_SCALE if half else 1.0
        self.learned = nn.ModuleDict({"vectors": vectors})
        self.rows = {word: vectors}

    def groups(self) -> list[Group]:
        return self.vectors.groups()

    def loss(self, batch: int, generator: torch.Generator, share: Share = ALONE) -> torch.Tensor:
        pictures = self.subject_set.draw(batch * share.processes, generator)
        rows = share.rows(len(pictures.captions))
        staged = self.staged(pictures.said(rows), self.vectors.table(generator))
        try:
            error, weight = errors(staged, pictures, NOTHING, {}, self.objective, generator, rows)
        except NotFinite:
            for text in staged.texts:  # looked at only now: every look waits for the device
                demand(text, CAPTION)
            raise
        loss = (error * weight).mean()
        if staged.watching is None or self.attention is None:
            return loss
        drawn = staged.watching.loss()
        demand(drawn, "attention_weight: the attention loss")
        return loss + self.attention.weight * drawn

    def staged(self, captions: list[str], table: tuple[torch.Tensor, torch.Tensor]) -> Staged:
        """The model, reading captions with the vectors of each picture's stage."""
        return Staged(self.model, self.word, captions, table, self.vectors.split, self.attention)

    def reading(self, prompt: str) -> Conditioning:
        """Nothing: the stages read a prompt by themselves."""
        return NOTHING

    def showing(self, prompt: str) -> tuple[Staged, Staged]:
        """The model as it is now, for drawing ``prompt``, and for the empty prompt."""
        table = self.vectors.table()
        drawing, empty = (Staged(self.model, self.word, [text], table, self.vectors.split, None) for text in (prompt, ""))
        return drawing, empty


#: what the objective hands on as the prompt: the stages read their captions by themselves
NOTHING = Conditioning(torch.empty(0))


@dataclass(eq=False)
class Staged(Around):
    """A model whose prompts depend on the timestep."""

    model: Denoiser
    word: str
    captions: list[str]
    table: tuple[torch.Tensor, torch.Tensor]
    split: bool
    attention: AttentionLoss | None
    watching: Watching | None = None  # of the last prediction
    texts: tuple[torch.Tensor, ...] = ()  # that it read

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning,
                weights: WeightOverrides) -> torch.Tensor:
        captions = self.captions * (len(noisy) // len(self.captions))
        stages = [stage_of(int(timestep), len(self.table[0]), len(self.alpha_bars)) for timestep in timesteps]
        keys, values = self._read(captions, stages)
        self.texts = (keys.cross_attention,) if values is None else (keys.cross_attention, values)
        self.watching = self.attention.watching(self.model, captions, self.word) if self.attention else None
        return self.model.predict(noisy, timesteps, keys, weights, values, self.watching)

    def _read(self, captions: list[str], stages: list[int]) -> tuple[Conditioning, torch.Tensor | None]:
        """The prompts for keys, and those for values [B, L, D] if they have vectors of their own.

        Each caption that occurs is encoded in one call, with every vector that it needs.
        """
        parts, count = self.table if self.split else self.table[:1], len(self.table[0])
        vectors = torch.cat(parts)
        wanted = [[(caption, stage + part * count) for caption, stage in zip(captions, stages)] for part in range(len(parts))]
        read = {}
        for caption in dict.fromkeys(captions):
            rows = list(dict.fromkeys(row for other, row in sum(wanted, []) if other == caption))
            encoded = self.model.encode_each(caption, self.word, vectors[rows])
            for place, row in enumerate(rows):
                pooled = None if encoded.pooled is None else encoded.pooled[place:place + 1]
                read[caption, row] = Conditioning(encoded.cross_attention[place:place + 1], pooled)
        keys, *values = ([read[key] for key in part] for part in wanted)
        return Conditioning.stacked(keys), torch.cat([one.cross_attention for one in values[0]]) if values else None
