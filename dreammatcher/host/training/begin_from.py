"""Reads what a training begins from: a LoRA's changes by name of the model's weight, by the host's own loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import torch

from ...training.adapters import MAGNITUDES, Factors
from ...training.beginning import INPUT, Change
from ...training.details import DORA, LOHA, LOKR
from ...training.export import Learned
from ...weights import LowRank
from ..graph.notes import tell
from .lora_file import convert_lora, taken_by

#: kinds of LoRA that are no pair of factors, by what the host's loader calls them
OTHERS = {"loha": "LoHa", "lokr": "LoKr", "glora": "GLoRA", "oft": "OFT", "boft": "BOFT"}
#: forms that trainings make: the host's name -> our name of it, and the ends of the names of a patch's tensors
PARTS = {"lora": (DORA, ("lora_up.weight", "lora_down.weight", "alpha", "lora_mid.weight", MAGNITUDES)),
         "loha": (LOHA, ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", MAGNITUDES)),
         "lokr": (LOKR, ("lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
                         MAGNITUDES))}
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

    Raises ValueError for a file of another kind of model, and for LoRAs that no training makes (GLoRA, OFT, middle factors).
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
    return Beginning(unet, text, dict(learned.embeddings), learned.digest())


def _change(name: str, patch: Any) -> Change:
    """A patch of the host's loader, a tuple or an adapter, as a change."""
    kind, values = patch if isinstance(patch, tuple) else (getattr(patch, "name", ""), getattr(patch, "weights", ()))
    if kind == "diff":
        return values[0].float()
    if known := _factors(kind, values):
        return known
    if kind != "lora" or any(torch.is_tensor(value) for value in values[3:]):  # with a middle factor or a new shape
        said = OTHERS.get(kind, "DoRA over outputs or a LoRA with a middle factor" if kind == "lora" else kind)
        raise ValueError(f"{INPUT}: {name} is changed by a {said} of a form that no training here makes; apply it to the "
                         "model in front")
    up, down, alpha = values[:3]
    return LowRank(down.float(), up.float(), 1.0 if alpha is None else alpha / down.shape[0])


def _factors(kind: str, values: Sequence[Any]) -> Factors | None:
    """A DoRA, LoHa or LoKr of the form that trainings make, or None."""
    if kind not in PARTS:
        return None
    algorithm, ends = PARTS[kind]
    there = {end: value for end, value in zip(ends, values) if torch.is_tensor(value)}
    alpha = values[ends.index("alpha")]
    wanted = {DORA: ({"lora_up.weight", "lora_down.weight", MAGNITUDES},), LOHA: (set(ends[:2] + ends[3:5]),),
              LOKR: ({"lokr_w1", "lokr_w2"}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"})}[algorithm]
    there.pop("alpha", None)
    over_outputs = MAGNITUDES in there and len(there[MAGNITUDES]) != 1  # hosts compute these otherwise
    if set(there) not in wanted or over_outputs or any(torch.is_tensor(value) for value in values[len(ends):]):
        return None
    return Factors(algorithm, there, None if alpha is None else float(alpha))
