"""The common part of a recipe's step: draw pictures, encode their captions, weigh the model's error on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from ..finite import demand
from ..subject import Conditioning
from ..weights import WeightOverrides
from .data import Batch, LatentSet
from .denoising import Denoiser, FrozenModel, Penalty, Predictor, Watched, errors
from .objective import prior_preserving
from .parallel import ALONE, Share
from .settings import ObjectiveSettings
from .trainables import Group, TokenRows, Trainable

#: of the loss on a model in float16, whose gradients would otherwise fall below its smallest numbers
LOSS_SCALE = 1024.0

Model = TypeVar("Model", bound=FrozenModel, covariant=True)
Learner = TypeVar("Learner", bound=Denoiser)


class Recipe(Protocol[Model]):
    """A method: what is trained, and what its loss is."""

    @property
    def model(self) -> Model:
        """The model that learns the subject; its weights are frozen."""

    @property
    def subject_set(self) -> LatentSet:
        """The subject's pictures."""

    @property
    def unet(self) -> Trainable | None:
        """Differences to the UNet that learn."""

    @property
    def text(self) -> Trainable | None:
        """Differences to the text encoder that learn."""

    @property
    def rows(self) -> Mapping[str, nn.Module]:
        """Vectors of new words, or what makes them, which learn."""

    @property
    def learned(self) -> nn.Module:
        """Holds every parameter that learns, and nothing else."""

    @property
    def streams(self) -> int:
        """Pictures that go through the model for each one of a batch."""

    @property
    def scale(self) -> float:
        """The scale of the loss at first while gradients are made: half precision would round small ones to zero."""

    def groups(self) -> list[Group]:
        """Parameters with their learning rates."""

    def loss(self, batch: int, generator: torch.Generator, share: Share) -> torch.Tensor:
        """Loss of this process's ``batch`` pictures, drawn with ``generator`` and nothing else that is random."""

    def reading(self, prompt: str) -> Conditioning:
        """A prompt as the text encoder reads it now."""

    def showing(self, prompt: str) -> tuple[Predictor, Predictor]:
        """The model as it is now, for drawing ``prompt``, and for the empty prompt that guidance leads away from."""


class SubjectRecipe(Generic[Learner]):
    """Differences to the UNet, to the text encoder, and rows for new words learn a subject from its pictures.

    With ``prior``, pictures of its class are drawn beside them in every step, with noise and timesteps of their own; of one size
    they share one call of the model. Min-SNR weights are for the subject's pictures alone, as in diffusers' train_dreambooth.py.
    """

    def __init__(self, model: Learner, subject_set: LatentSet, objective: ObjectiveSettings, *, unet: Trainable | None = None,
                 text: Trainable | None = None, rows: Mapping[str, TokenRows] | None = None, prior: LatentSet | None = None,
                 penalty: Penalty | None = None):
        self.model, self.subject_set, self.prior, self.objective = model, subject_set, prior, objective
        self.unet, self.text, self.rows, self.penalty = unet, text, dict(rows or {}), penalty
        read = (*model.unet.values(), *(model.text.values() if text or rows else ()))
        self.streams = 2 if prior is not None and objective.prior_weight else 1
        self.scale = LOSS_SCALE if any(value.dtype == torch.float16 for value in read) else 1.0
        parts: dict[str, Trainable | TokenRows | None] = {
            "unet": unet, "text": text, **{f"word {number}": one for number, one in enumerate(self.rows.values())}}
        self._parts = {name: part for name, part in parts.items() if part is not None}
        self.learned = nn.ModuleDict(self._parts)

    def groups(self) -> list[Group]:
        return [group for part in self._parts.values() for group in part.groups()]

    def loss(self, batch: int, generator: torch.Generator, share: Share = ALONE) -> torch.Tensor:
        unet = self.unet.weights(self.model.unet, generator) if self.unet else {}
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

    def reading(self, prompt: str) -> Conditioning:
        """A prompt as the text encoder reads it now."""
        return self.model.encode([prompt], self.text.weights(self.model.text) if self.text else None, self.rows or None)

    def showing(self, prompt: str) -> tuple[Denoiser, Denoiser]:
        """The model that draws ``prompt`` while it trains, twice: it takes the prompt as conditioning."""
        return self.model, self.model

    def _errors(self, batch: Batch, unet: WeightOverrides, generator: torch.Generator,
                rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
        """Error and weight of each row, and the penalty."""
        text, captions = self.text.weights(self.model.text, generator) if self.text else None, batch.said(rows)
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
