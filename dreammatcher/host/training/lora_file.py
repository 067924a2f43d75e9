"""Finds what the host takes of a LoRA file, by its own loader: names have many forms, and each host knows others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch

try:
    from comfy.lora_convert import convert_lora
except ImportError:  # older hosts have no forms that need it
    def convert_lora(tensors: dict) -> dict:
        return tensors


@dataclass(frozen=True, eq=False)
class Taken:
    """Tensors of a file, by whether they are for a model."""

    tensors: dict[str, torch.Tensor]  # that the host's loader takes
    unknown: list[str]  # names of those that are for no weight of the model
    unlike: dict[str, str]  # weight -> its size in the file and in the model, where these differ

    def left_out(self) -> str:
        """The tensors that are not taken, in words; empty when all are."""
        parts = []
        if self.unknown:
            parts.append(f"{len(self.unknown)} tensors are for no weight of this model, as {self.unknown[0]}")
        if self.unlike:
            weight, sizes = next(iter(self.unlike.items()))
            parts.append(f"{len(self.unlike)} weights have another size, as {weight}, {sizes}")
        return "; ".join(parts)


class _Watched(dict):
    """Remembers which of its values were read."""

    def __init__(self, values: Mapping[str, torch.Tensor]):
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.update({key} & self.keys())
        return super().get(key, default)


def taken_by(model, clip, tensors: Mapping[str, torch.Tensor]) -> Taken:
    """The ``tensors`` of a file that the host loads for MODEL and CLIP.

    The host would leave a weight of another size as it is, and say so in the log alone.
    """
    names = {**comfy.lora.model_lora_keys_unet(model.model, {}), **comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})}
    weights = {**model.model.state_dict(), **clip.cond_stage_model.state_dict()}
    content = convert_lora(dict(tensors))
    first = _Watched(content)
    patches = comfy.lora.load_lora(first, names)
    unlike = {key: sizes for key, patch in patches.items() if (sizes := _unlike(patch, weights.get(key)))}
    taken = first
    if unlike:
        taken = _Watched({name: content[name] for name in first.read})
        patches = comfy.lora.load_lora(taken, {name: key for name, key in names.items() if key not in unlike})
    return Taken({name: content[name] for name in content if patches and name in taken.read},
                 [name for name in content if name not in first.read], unlike)


def _unlike(patch: Any, weight: torch.Tensor | None) -> str:
    """The sizes of a plain low-rank or whole difference and of its ``weight`` where they differ; empty for other kinds."""
    kind, values = patch if isinstance(patch, tuple) else (getattr(patch, "name", ""), getattr(patch, "weights", ()))
    if weight is None:
        return ""
    if kind == "lora" and values[3] is None and not any(torch.is_tensor(value) for value in values[5:]):  # without mid, reshape
        shape = (values[0].shape[0], *values[1].shape[1:])
    elif kind == "diff":
        shape = tuple(values[0].shape)
    else:
        return ""
    same = math.prod(shape) == weight.numel() if kind == "lora" else shape == tuple(weight.shape)
    return "" if same else f"{'x'.join(map(str, shape))} in the file and {'x'.join(map(str, weight.shape))} in the model"
