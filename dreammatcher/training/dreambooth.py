"""DreamBooth (Ruiz et al. 2023): the whole model, or low-rank differences to it, learns a rare word for one subject.

The loss is that of :class:`~.recipe.SubjectRecipe` with a prior (Eq. 2); what learns is chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..backbones.unet import PROJECTIONS
from .settings import LoraSettings
from .trainables import Full, Lora

#: weights that a LoRA changes (diffusers, train_dreambooth_lora.py): the projections of self- and cross-attention
UNET_TARGETS = PROJECTIONS
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
