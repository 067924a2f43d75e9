"""Reads what a training begins from: a LoRA's changes by name of the model's weight, by the host's own loader."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import torch

from ...training.beginning import INPUT, Change
from ...training.export import Learned
from ...weights import LowRank
from ..graph.notes import tell
from .lora_file import convert_lora, taken_by

#: kinds of LoRA that are no pair of factors, by what the host's loader calls them
OTHERS = {"loha": "LoHa", "lokr": "LoKr", "glora": "GLoRA", "oft": "OFT", "boft": "BOFT"}
UNET = "diffusion_model."


@dataclass(frozen=True, eq=False)
class Beginning:
    """Changes that were learned before, for the weights of one model."""

    unet: Mapping[str, Change] = field(default_factory=dict)
    text: Mapping[str, Change] = field(default_factory=dict)
    words: Mapping[str, torch.Tensor] = field(default_factory=dict)  # word -> vectors [V, D]
    digest: str = ""

    def only(self, *parts: str) -> None:
        """Raises ValueError where it holds others than ``parts``: they would be lost."""
        remedies = {"unet": "weights of the UNet, which this node does not teach; apply it to the model in front",
                    "text": "weights of the text encoder, which does not learn here; turn the node's text_encoder on, or apply "
                            "it to the model in front"}
        for part, said in remedies.items():
            if part not in parts and getattr(self, part):
                raise ValueError(f"{INPUT}: it holds {said}")
        if "words" not in parts and self.words:
            tell(f"{INPUT}: its words {', '.join(map(repr, self.words))} are left out, since this node teaches weights alone; "
                 "give a word by embedding:NAME in prompts")


def beginning_of(model, clip, learned: Learned | None) -> Beginning | None:
    """Reads ``learned`` as changes to MODEL and CLIP; None where nothing is connected.

    Raises ValueError for a file of another kind of model, and for LoRAs that are no pairs of factors (LoHa, LoKr, DoRA).
    """
    if learned is None:
        return None
    unet: dict[str, Change] = {}
    text: dict[str, Change] = {}
    if learned.lora:
        taken = taken_by(model, clip, learned.lora)
        if taken.unlike or not taken.tensors:
            raise ValueError(f"{INPUT}: it is a LoRA for another kind of model: {taken.left_out()}")
        if taken.unknown:
            tell(f"{INPUT}: {taken.left_out()}; they are left out")
        names = {**comfy.lora.model_lora_keys_unet(model.model, {}), **comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})}
        for key, patch in comfy.lora.load_lora(convert_lora(dict(taken.tensors)), names).items():
            if not isinstance(key, str):
                raise ValueError(f"{INPUT}: it changes a part of the weight {key[0]}, which is not taught by itself; apply it to "
                                 "the model in front")
            part, name = (unet, key.removeprefix(UNET)) if key.startswith(UNET) else (text, key)
            part[name] = _change(name, patch)
    return Beginning(unet, text, dict(learned.embeddings), _digest(learned))


def _change(name: str, patch: Any) -> Change:
    """A patch of the host's loader, a tuple or an adapter, as a change."""
    kind, values = patch if isinstance(patch, tuple) else (getattr(patch, "name", ""), getattr(patch, "weights", ()))
    if kind == "diff":
        return values[0].float()
    if kind != "lora" or any(torch.is_tensor(value) for value in values[3:]):  # with a middle factor, DoRA's scale, a new shape
        said = OTHERS.get(kind, "DoRA or a LoRA with a middle factor" if kind == "lora" else kind)
        raise ValueError(f"{INPUT}: {name} is changed by a {said}, and a training begins from plain LoRAs; apply it to the "
                         "model in front")
    up, down, alpha = values[:3]
    return LowRank(down.float(), up.float(), 1.0 if alpha is None else alpha / down.shape[0])


def _digest(learned: Learned) -> str:
    digest = hashlib.sha256()
    for name, value in sorted({**learned.lora, **learned.embeddings}.items()):
        digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
