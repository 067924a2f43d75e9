"""The attention loss: maps of learned keys are drawn towards those of a known word in the same place, for the same queries.

One queries' features and two prompts are the project page's [page], and so is the weight of 0.003, the best of 1e-4 to 5e-2.
The norm, the reduction, the layers and where gradients stop are not stated [inferred].
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from einops import rearrange

from ..texts import alone, holds
from ..training.denoising import Denoiser
from ..training.ranges import check
from ..watch import AttentionLayer

WEIGHT = 0.003
#: dimensions of a squared difference [B, heads, patches, tokens] that are summed; over the others the mean is taken
SUMMED = {"sum over patches": (2,), "mean": (), "sum over patches and tokens": (2, 3)}
#: the curve of weights on Toybox then has the shape of the paper's, and its best value for as many patches (docs/measured.md)
REDUCTION = "sum over patches"


@dataclass(frozen=True)
class AttentionLoss:
    """Settings of the attention loss: which word is drawn towards which, and how strongly. Any training of a word can take it."""

    class_word: str
    weight: float = WEIGHT
    reduction: str = REDUCTION
    subject_only: bool = False  # only the word's own column, not that of every token

    def __post_init__(self) -> None:
        if not self.class_word.strip():
            raise ValueError("class_word: it is empty, and the attention loss needs a known word for the subject, as dog or toy")
        if self.reduction not in SUMMED:
            raise ValueError(f"reduction: {self.reduction!r} is unknown; choose one of {', '.join(SUMMED)}")
        check("attention_weight", self.weight, 0, 1e4, "0 turns it off")

    def watching(self, model: Denoiser, captions: list[str], word: str) -> Watching:
        """The loss of one call of the model whose prompts are ``captions``, in which ``word`` stands for the subject."""
        reference = model.encode([reference_prompt(caption, word, self.class_word) for caption in captions]).cross_attention
        learned = [row for row, caption in enumerate(captions) if holds(caption, word)]
        columns = [model.places(captions[row], word)[0] for row in learned] if self.subject_only else None
        return Watching(self.reduction, reference, learned, columns)


def reference_prompt(caption: str, word: str, class_word: str) -> str:
    """The caption with the known word in the learned one's place, so that every token has its counterpart [page]."""
    return re.sub(alone(word), lambda _: class_word.strip(), caption)


class Watching:
    """Collects the loss of every layer of one call."""

    def __init__(self, reduction: str, reference: torch.Tensor, rows: list[int], columns: list[int] | None):
        self.reduction, self.reference, self.rows, self.columns = reduction, reference, rows, columns
        self.collected: list[torch.Tensor] = []  # the loss of every layer

    def __call__(self, layer: AttentionLayer) -> None:
        if not self.rows:
            return
        rows = slice(None) if len(self.rows) == len(layer.queries) else self.rows
        queries = layer.queries[rows]
        maps = attention_maps(queries, layer.keys(layer.context[rows]))
        with torch.no_grad():
            wanted = attention_maps(queries, layer.keys(self.reference.to(layer.context)[rows]))
        if self.columns is not None:
            places = torch.tensor(self.columns, device=maps.device)
            maps, wanted = (each[torch.arange(len(places)), ..., places][..., None] for each in (maps, wanted))
        self.collected.append(map_difference(maps, wanted, self.reduction))

    def loss(self) -> torch.Tensor:
        """Mean over the layers; 0 where no caption held the word."""
        return torch.stack(self.collected).mean() if self.collected else self.reference.new_zeros(())


def attention_maps(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) [B, H, N, T] of queries [B, H, N, d] and keys [B, H, T, d].

    All of it in float32: products of half precision are beyond its largest number before they are scaled.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return ((queries.float() @ rearrange(keys.float(), "b h t d -> b h d t")) * queries.shape[-1] ** -0.5).softmax(-1)


def map_difference(maps: torch.Tensor, wanted: torch.Tensor, reduction: str) -> torch.Tensor:
    """Squared difference of maps [B, H, N, T], summed over the dimensions of a reduction, the mean over the others."""
    squared = (maps - wanted.detach()).square()
    summed = SUMMED[reduction]
    return (squared.sum(summed) if summed else squared).mean()
