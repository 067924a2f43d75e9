"""A latent diffusion model as training sees it, and the error that it makes on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ..finite import NotFinite, demand, finite
from ..subject import Conditioning
from ..watch import Watch
from ..weights import WeightOverrides, Weights
from .data import Batch
from .objective import (
    add_noise,
    huber_thresholds,
    min_snr_weights,
    offset_noise,
    picture_errors,
    target,
    timesteps_of,
)
from .settings import ObjectiveSettings
from .trainables import TokenRows


class FrozenModel(Protocol):
    """A frozen model. Nothing that is passed to it is written to it."""

    @property
    def alpha_bars(self) -> torch.Tensor:
        """[T], of every timestep: the square of the clean picture's share in x_t."""

    @property
    def prediction(self) -> str:
        """The kind of its prediction: see :mod:`.objective`."""

    @property
    def device(self) -> torch.device: ...

    @property
    def unet(self) -> Weights:
        """Its weights by name."""

    @property
    def text(self) -> Weights:
        """Its text encoder's, by name."""

    def encode(self, captions: list[str], weights: WeightOverrides | None = None,
               rows: Mapping[str, TokenRows] | None = None) -> Conditioning:
        """The captions' conditioning [B, L, D], with overrides for weights of the text encoder and rows for new words."""


class Denoiser(FrozenModel, Protocol):
    """A frozen model that predicts."""

    def encode_each(self, caption: str, word: str, vectors: torch.Tensor) -> Conditioning:
        """The conditioning [V, L, D] of one caption, in which ``word`` stands for each of ``vectors`` [V, D] in turn."""

    def places(self, caption: str, word: str) -> tuple[int, int]:
        """Columns, in a caption's conditioning, of a learned word of one vector and of the first end token."""

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning, weights: WeightOverrides,
                values: torch.Tensor | None = None, watch: Watch | None = None) -> torch.Tensor:
        """The model's prediction for ``noisy`` [B, C, h, w] at ``timesteps`` [B], with overrides for weights of its network.

        ``values`` [B, T, D] is a prompt of its own for the values of cross-attention; ``watch`` sees every such layer.
        """


class Predictor(Protocol):
    """A model as the common objective sees it."""

    @property
    def alpha_bars(self) -> torch.Tensor: ...

    @property
    def prediction(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning,
                weights: WeightOverrides) -> torch.Tensor: ...


class Penalty(Protocol):
    """A further loss, of what cross-attention does while a batch is predicted."""

    @property
    def weight(self) -> float: ...

    @property
    def class_word(self) -> str:
        """The known word that the learned one is compared with."""

    def watching(self, model: Denoiser, captions: list[str], word: str) -> Watching:
        """The penalty's watch over one call whose prompts are ``captions``."""


class Watching(Watch, Protocol):
    def loss(self) -> torch.Tensor:
        """The loss over all layers that the watch has seen."""


@dataclass(eq=False)
class Around:
    """A model as the common objective sees it, with something of a method's own around its predictions."""

    model: FrozenModel

    @property
    def alpha_bars(self) -> torch.Tensor:
        return self.model.alpha_bars

    @property
    def prediction(self) -> str:
        return self.model.prediction

    @property
    def device(self) -> torch.device:
        return self.model.device


@dataclass(eq=False)
class Watched(Around):
    """A model whose cross-attention is watched."""

    model: Denoiser
    watch: Watch

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning,
                weights: WeightOverrides) -> torch.Tensor:
        return self.model.predict(noisy, timesteps, conditioning, weights, watch=self.watch)


#: of what is not finite
CAPTION = "clip: a caption as the text encoder reads it, with what is learned,"


def errors(model: Predictor, batch: Batch, conditioning: Conditioning, weights: WeightOverrides, objective: ObjectiveSettings,
           generator: torch.Generator, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction error [R] and weight [R] of some ``rows`` [R] of a batch (DDPM, Algorithm 1).

    Each row is at a timestep of its own, drawn evenly unless the objective says otherwise. ``conditioning`` is of these rows.

    Noise and timesteps are drawn for the whole batch, in main memory, so that every device and process learns from the same ones.
    Raises NotFinite, naming the part at fault, when an error is not finite.
    """
    steps, how = len(model.alpha_bars), objective.noise
    timesteps = timesteps_of(len(batch.latents), steps, how.times, generator)[rows]
    noise = torch.randn(batch.latents.shape, generator=generator)
    if how.offset:
        noise = offset_noise(noise, how.offset, generator)
    noise, batch = noise[rows].to(model.device), batch.only(rows)
    clean, alpha_bar = batch.latents.to(model.device), model.alpha_bars[timesteps].to(model.device)
    noisy = add_noise(clean, noise, alpha_bar, model.prediction)
    predicted = model.predict(noisy, timesteps.to(model.device), conditioning, weights)
    mask = batch.masks.to(model.device) if objective.masked and batch.masks is not None else None
    thresholds = huber_thresholds(how, alpha_bar, timesteps, steps, model.prediction)
    error = picture_errors(predicted, target(model.prediction, clean, noise, alpha_bar), mask, how.loss, thresholds)
    if not finite(error):
        demand(clean, "vae: a picture as latents")
        demand(conditioning.cross_attention, CAPTION)
        demand(predicted, "model: its prediction")
        if mask is not None:
            demand(mask, "masks: one of them")
        raise NotFinite("model: its prediction is too large")
    if not objective.min_snr_gamma:
        return error, torch.ones_like(error)
    return error, min_snr_weights(alpha_bar, objective.min_snr_gamma, model.prediction).to(error)
