"""The common part of a recipe's step: draw pictures, encode their captions, weigh the model's error on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from ..finite import demand
from .data import Batch, LatentSet
from .denoising import Denoiser, Penalty, Watched, errors
from .objective import prior_preserving
from .parallel import ALONE, Share
from .settings import ObjectiveSettings
from .trainables import Group, TokenRows, Trainable

#: of the loss on a model in float16, whose gradients would otherwise fall below its smallest numbers
LOSS_SCALE = 1024.0


class Recipe(Protocol):
    """A method: what is trained, and what its loss is."""

    learned: nn.Module  # holds every parameter that learns, and nothing else
    streams: int  # pictures that go through the model for each one of a batch
    scale: float  # of the loss at first while gradients are made, so that half precision does not round small ones to zero

    def groups(self) -> list[Group]:
        """Parameters with their learning rates."""

    def loss(self, batch: int, generator: torch.Generator, share: Share) -> torch.Tensor:
        """Loss of this process's ``batch`` pictures, drawn with ``generator`` and nothing else that is random."""


class SubjectRecipe:
    """Differences to the UNet, to the text encoder, and rows for new words learn a subject from its pictures.

    With ``prior``, pictures of its class are drawn beside them in every step, with noise and timesteps of their own; of one size
    they share one call of the model. Min-SNR weights are for the subject's pictures alone, as in diffusers' train_dreambooth.py.
    """

    def __init__(self, model: Denoiser, subject_set: LatentSet, objective: ObjectiveSettings, *, unet: Trainable | None = None,
                 text: Trainable | None = None, rows: Mapping[str, TokenRows] | None = None, prior: LatentSet | None = None,
                 penalty: Penalty | None = None):
        self.model, self.subject_set, self.prior, self.objective = model, subject_set, prior, objective
        self.unet, self.text, self.rows, self.penalty = unet, text, dict(rows or {}), penalty
        read = (*model.unet.values(), *(model.text.values() if text or rows else ()))
        self.streams = 2 if prior is not None and objective.prior_weight else 1
        self.scale = LOSS_SCALE if any(value.dtype == torch.float16 for value in read) else 1.0
        parts = {"unet": unet, "text": text, **{f"word {number}": one for number, one in enumerate(self.rows.values())}}
        self.learned = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def groups(self) -> list[Group]:
        return [group for part in self.learned.values() for group in part.groups()]

    def loss(self, batch: int, generator: torch.Generator, share: Share = ALONE) -> torch.Tensor:
        unet = self.unet.weights(self.model.unet) if self.unet else {}
        drawn = batch * share.processes
        subject = self.subject_set.draw(drawn, generator)
        prior = self.prior.draw(drawn, generator) if self.prior and self.objective.prior_weight else None
        if prior is not None and prior.latents.shape[1:] == subject.latents.shape[1:]:
            error, weight, more = self._errors(_together(subject, prior), unet, generator, share.rows(2 * drawn, 2))
            return prior_preserving(error[:batch] * weight[:batch], error[batch:], self.objective.prior_weight) + more
        rows = share.rows(drawn)
        error, weight, more = self._errors(subject, unet, generator, rows)
        other = None if prior is None else self._errors(prior, unet, generator, rows)[0]
        return prior_preserving(error * weight, other, self.objective.prior_weight) + more

    def showing(self, prompt: str) -> Denoiser:
        """The model that draws ``prompt`` while it trains."""
        return self.model

    def _errors(self, batch: Batch, unet: dict[str, torch.Tensor], generator: torch.Generator,
                rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
        """Error and weight of each row, and the penalty."""
        text, captions = self.text.weights(self.model.text) if self.text else None, batch.said(rows)
        conditioning = self.model.encode(captions, text, self.rows or None)
        if self.penalty is None:
            return *errors(self.model, batch, conditioning, unet, self.objective, generator, rows), 0.0
        watching = self.penalty.watching(self.model, captions, next(iter(self.rows)))
        weighed = errors(Watched(self.model, watching), batch, conditioning, unet, self.objective, generator, rows)
        loss = watching.loss()
        demand(loss, "attention_loss: it")
        return *weighed, self.penalty.weight * loss


def _together(subject: Batch, prior: Batch) -> Batch:
    masks = None
    if subject.masks is not None or prior.masks is not None:
        masks = torch.cat([torch.ones_like(each.latents[:, :1]) if each.masks is None else each.masks
                           for each in (subject, prior)])
    return Batch(torch.cat([subject.latents, prior.latents]), masks, subject.captions + prior.captions)
