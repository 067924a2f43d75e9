"""DreamBooth (Ruiz et al. 2023): the whole model, or low-rank differences to it, learns a rare word for one subject.

The loss is that of :class:`~.recipe.SubjectRecipe` with a prior (Eq. 2); what learns is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ..backbones import dit
from ..backbones.unet import AROUND_BLOCKS, CONVOLUTIONS, FEED_FORWARD, PROJECTIONS, block_name
from .adapters import Adapter, adapter_of
from .details import PLAIN, Layers
from .settings import LoraSettings
from .trainables import Full, Lora

#: weights that a LoRA changes (diffusers, train_dreambooth_lora.py): the projections of self- and cross-attention
UNET_TARGETS = PROJECTIONS
TEXT_TARGETS = tuple(f"self_attn.{layer}.weight" for layer in ("q_proj", "k_proj", "v_proj", "out_proj"))
#: weights by the kind of layer that they are of; a text encoder has fewer kinds
UNET_LAYERS = {"attention": UNET_TARGETS, "feed_forward": FEED_FORWARD, "convolutions": CONVOLUTIONS,
               "projections": AROUND_BLOCKS}
TEXT_LAYERS = {"attention": TEXT_TARGETS, "feed_forward": ("mlp.fc1.weight", "mlp.fc2.weight")}
TRANSFORMER_LAYERS = {"attention": dit.PROJECTIONS, "feed_forward": dit.FEED_FORWARD}
#: of a text encoder, what a full training leaves alone: the table of tokens and the projection, which the UNet never sees
TEXT_KEPT = ("embeddings.", "text_projection.")


def lora_of(weights: Mapping[str, torch.Tensor], targets: tuple[str, ...], settings: LoraSettings, rate: float,
            generator: torch.Generator, dropout: float = 0.0, algorithm: str = PLAIN) -> Lora | Adapter:
    """Low-rank differences to every weight whose name ends in one of ``targets``, or other forms of them by their ``algorithm``.

    ``dropout``: as :class:`Lora` has it. Raises ValueError when there is no such weight.
    """
    changed = {name: value for name, value in weights.items() if name.endswith(targets)}
    if not changed:
        raise ValueError(f"model: it has no weights named {', '.join(targets) or 'so'}; a LoRA needs a UNet with attention")
    if algorithm != PLAIN:
        return adapter_of(algorithm, changed, settings, rate, generator, dropout)
    return Lora({name: value.shape for name, value in changed.items()}, settings, rate, generator, dropout)


def unet_targets(weights: Iterable[str], layers: Layers) -> tuple[str, ...]:
    """Names of the UNet's ``weights`` that a LoRA of these ``layers`` changes.

    Raises ValueError when there is none, and for a block that the UNet does not have.
    """
    _check_chosen(layers)
    ends = tuple(end for kind in layers.chosen for end in UNET_LAYERS[kind])
    found = [name for name in weights if name.endswith(ends)]
    there = sorted({block_name(name) for name in found} - {""})
    wrong = next((block for block in layers.blocks if block not in there), None)
    if wrong is not None:
        raise ValueError(f"blocks: {wrong!r} has none of the chosen layers in this model; choose among {', '.join(there)}")
    return tuple(name for name in found if not layers.blocks or block_name(name) in layers.blocks)


def transformer_targets(weights: Mapping[str, torch.Tensor], layers: Layers) -> tuple[str, ...]:
    """Names of a transformer's ``weights`` that a LoRA of these ``layers`` changes.

    Raises ValueError when there is none, and for layers that UNets alone have.
    """
    _check_chosen(layers)
    others = [name for name in ("convolutions", "projections", "blocks") if getattr(layers, name)]
    if others:
        raise ValueError(f"{' and '.join(others)}: these are layers of a UNet, and this model is a transformer, of which a LoRA "
                         "changes attention and feed_forward; leave them off and blocks empty in Training Details (DreamMatcher)")
    ends = tuple(end for kind in layers.chosen for end in TRANSFORMER_LAYERS[kind])
    found = tuple(name for name, value in weights.items() if name.endswith(ends) and value.ndim == 2)
    if not found:
        raise ValueError(f"model: none of its layers has a name that this pack knows of {' and '.join(layers.chosen)}; teach "
                         "another model")
    return found


def _check_chosen(layers: Layers) -> None:
    if not layers.chosen:
        raise ValueError("attention, feed_forward, convolutions and projections: all are off, so nothing of the model would "
                         "learn; turn one on")


def text_targets(layers: Layers) -> tuple[str, ...]:
    """Ends of the names of a text encoder's weights that a LoRA of these ``layers`` changes. Raises ValueError for none."""
    ends = tuple(end for kind in layers.chosen for end in TEXT_LAYERS.get(kind, ()))
    if not ends:
        raise ValueError("text_encoder: none of the layers that Training Details (DreamMatcher) chooses is in a text encoder; "
                         "turn attention or feed_forward on there, or text_encoder off")
    return ends


def full_of(weights: Mapping[str, torch.Tensor], rate: float, kept: tuple[str, ...] = ()) -> Full:
    """Differences to every weight but those whose names hold one of ``kept``."""
    return Full({name: value.shape for name, value in weights.items()
                 if value.is_floating_point() and not any(part in name for part in kept)}, rate)
