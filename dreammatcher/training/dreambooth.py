"""DreamBooth (Ruiz et al. 2023): the whole model, or low-rank differences to it, learns a rare word for one subject."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .data import Batch, LatentSet
from .denoising import Denoiser, errors
from .objective import prior_preserving
from .settings import LoraSettings, ObjectiveSettings
from .trainables import Full, Group, Lora, Trainable

#: weights that a LoRA changes (diffusers, train_dreambooth_lora.py): the projections of self- and cross-attention
UNET_TARGETS = tuple(f"{attention}.{layer}.weight" for attention in ("attn1", "attn2")
                     for layer in ("to_q", "to_k", "to_v", "to_out.0"))
TEXT_TARGETS = tuple(f"self_attn.{layer}.weight" for layer in ("q_proj", "k_proj", "v_proj", "out_proj"))
#: of a text encoder, what a full training leaves alone: the table of tokens and the projection, which the UNet never sees
TEXT_KEPT = ("embeddings.", "text_projection.")


def lora_of(weights: Mapping[str, torch.Tensor], targets: tuple[str, ...], settings: LoraSettings, rate: float,
            generator: torch.Generator) -> Lora:
    """Low-rank differences to every weight whose name ends in one of ``targets``. Raises ValueError when there is none."""
    shapes = {name: value.shape for name, value in weights.items() if name.endswith(targets)}
    if not shapes:
        raise ValueError(f"model: it has no weights named {', '.join(targets)}; a LoRA needs a UNet with attention")
    return Lora(shapes, settings, rate, generator)


def full_of(weights: Mapping[str, torch.Tensor], rate: float, kept: tuple[str, ...] = ()) -> Full:
    """Differences to every weight but those whose names hold one of ``kept``."""
    return Full({name: value.shape for name, value in weights.items()
                 if value.is_floating_point() and not any(part in name for part in kept)}, rate)


class DreamBooth:
    """The subject's pictures, and with ``prior`` pictures of its class beside them (Eq. 2).

    Both are drawn in every step, with noise and timesteps of their own; of one size they share one call of the model. Min-SNR
    weights are for the subject's pictures alone, as in train_dreambooth.py.
    """

    def __init__(self, model: Denoiser, own: LatentSet, prior: LatentSet | None, objective: ObjectiveSettings, unet: Trainable,
                 text: Trainable | None = None):
        self.model, self.own, self.prior, self.objective = model, own, prior, objective
        self.unet, self.text = unet, text
        self.learned = nn.ModuleDict({"unet": unet, **({"text": text} if text else {})})

    def groups(self) -> list[Group]:
        return [*self.unet.groups(), *(self.text.groups() if self.text else ())]

    def loss(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        unet = self.unet.weights(self.model.unet)
        text = self.text.weights(self.model.text) if self.text else None
        own = self.own.draw(batch, generator)
        prior = self.prior.draw(batch, generator) if self.prior and self.objective.prior_weight else None
        if prior is not None and prior.latents.shape[1:] == own.latents.shape[1:]:
            error, weight = self._errors(_together(own, prior), unet, text, generator)
            return prior_preserving(error[:batch] * weight[:batch], error[batch:], self.objective.prior_weight)
        error, weight = self._errors(own, unet, text, generator)
        other = None if prior is None else self._errors(prior, unet, text, generator)[0]
        return prior_preserving(error * weight, other, self.objective.prior_weight)

    def _errors(self, batch: Batch, unet: dict, text: dict | None,
                generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return errors(self.model, batch, self.model.encode(batch.captions, text), unet, self.objective, generator)


def _together(own: Batch, prior: Batch) -> Batch:
    masks = None
    if own.masks is not None or prior.masks is not None:
        masks = torch.cat([torch.ones_like(each.latents[:, :1]) if each.masks is None else each.masks for each in (own, prior)])
    return Batch(torch.cat([own.latents, prior.latents]), masks, own.captions + prior.captions)
