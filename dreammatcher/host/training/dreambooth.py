"""DreamBooth's settings, and what learns by them on the host's model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...training.beginning import INPUT, begin
from ...training.data import LatentSet
from ...training.details import Details, Uses
from ...training.dreambooth import TEXT_KEPT, full_of, lora_of, text_targets, transformer_targets, unet_targets
from ...training.objective import FLOW
from ...training.recipe import SubjectRecipe
from ...training.settings import LoraSettings, ObjectiveSettings
from ...training.trainables import Trainable
from ...weights import Weights
from ..graph.notes import tell
from .begin_from import Beginning
from .names import text_names, unet_names
from .run import Ready

LORA, FULL = "LoRA", "full"


@dataclass(frozen=True)
class DreamBoothSettings:
    """Settings of DreamBooth: the weights that learn, and their rate."""

    kind: str = LORA
    lora: LoraSettings = LoraSettings()
    rate: float = 1e-4
    text: bool = False  # the text encoder too, at the same rate

    def __post_init__(self) -> None:
        if self.kind not in (LORA, FULL):
            raise ValueError(f"kind: {self.kind!r} is neither {LORA!r} nor {FULL!r}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} is outside 0..1; 0.0001 suits a LoRA, 0.000005 a full training")


def names_of(model, clip) -> dict[str, dict[str, str]]:
    """Names of UNet's and text encoder's weights in files, by those in the model."""
    return {"unet": unet_names(model.model), "text": text_names(clip.cond_stage_model)}


def uses_of(chosen: DreamBoothSettings) -> Uses:
    """The finer choices that DreamBooth can honour with these settings."""
    return Uses(f"DreamBooth ({chosen.kind})", lora=chosen.kind == LORA, text=chosen.text)


def recipe_of(work: Ready, prior: LatentSet | None, names: dict[str, dict[str, str]], chosen: DreamBoothSettings,
              objective: ObjectiveSettings, seed: int, details: Details, begun: Beginning | None = None) -> SubjectRecipe:
    """Chooses what learns, and has it begin from ``begun``, whose layers learn beside those of ``details``.

    Raises ValueError for layers that the model does not have, and as :func:`begin`.
    """
    generator, begun = torch.Generator().manual_seed(seed), begun or Beginning()

    def differences(weights: Weights, part: str, rate: float, targets: tuple[str, ...], kept: tuple[str, ...]) -> Trainable:
        changes = getattr(begun, part)
        if chosen.kind == LORA:  # with the layers that it begins from
            beyond = [name for name in changes if not name.endswith(targets)]
            if beyond and not details.layers.usual:
                tell(f"{INPUT}: it changes {len(beyond)} weights beyond the layers that Training Details (DreamMatcher) chooses, "
                     f"as {beyond[0]}; they learn too")
            learns: Trainable = lora_of(weights, (*targets, *changes), chosen.lora, rate, generator, details.rank_dropout,
                                        details.algorithm)
        else:
            learns = full_of({name: value for name, value in weights.items() if _stem(name) in names[part]}, rate, kept)
        begin(learns, changes)
        return learns

    with torch.inference_mode(False):
        frozen, text = work.denoiser, None
        targets = transformer_targets if frozen.prediction == FLOW else unet_targets
        unet = differences(frozen.unet, "unet", chosen.rate, targets(frozen.unet, details.layers), ())
        if chosen.text:
            rate = details.text.rate or chosen.rate
            text = differences(frozen.text, "text", rate, text_targets(details.layers), TEXT_KEPT)
            text.until = details.text.until
        return SubjectRecipe(work.denoiser, work.subject_set, objective, unet=unet, text=text, prior=prior)


def _stem(name: str) -> str:
    return name.rpartition(".")[0] + ".weight"
