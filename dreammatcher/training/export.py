"""Exports learned weights in the form that the stock loaders take: kohya's names, with alpha."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..uncopied import Uncopied
from .adapters import Adapter
from .trainables import Full, Lora, Trainable

#: in ``about``: which text encoders a word is for, and how wide its vectors are in each, as "clip_l:768,clip_g:1280"
TOWERS = "towers"


@dataclass(frozen=True, eq=False)
class Learned(Uncopied):
    """The result of a training. A copy of it is itself."""

    lora: dict[str, torch.Tensor]  # tensors of a LoRA file
    embeddings: dict[str, torch.Tensor] = field(default_factory=dict)  # word -> rows [V, D] of the token table
    about: dict[str, str] = field(default_factory=dict)  # what it is, for the file's metadata

    def size(self) -> int:
        """Count of numbers in what was learned."""
        return sum(value.numel() for value in (*self.lora.values(), *self.embeddings.values()))

    def digest(self) -> str:
        """The same text for the same numbers."""
        digest = hashlib.sha256()
        for name, value in sorted({**self.lora, **self.embeddings}.items()):
            digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def embedding_tensors(rows: torch.Tensor, about: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Tensors of an embedding file: each text encoder's part of a word's vectors [V, D], as :data:`TOWERS` says."""
    said = about.get(TOWERS) or f"{'clip_h' if rows.shape[1] == 1024 else 'clip_l'}:{rows.shape[1]}"
    names, widths = zip(*(part.split(":") for part in said.split(",")))
    return {name: part.contiguous() for name, part in zip(names, rows.split([int(width) for width in widths], 1))}


def lora_tensors(trainable: Trainable, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Tensors of a LoRA file, in float32. ``names``: weight of the model -> its name in such files, for weights, not biases.

    Low-rank differences become ``lora_down``, ``lora_up`` and ``alpha``, other forms what LyCORIS calls them; whole ones
    ``diff``, biases ``diff_b`` beside their weight. Raises ValueError for a weight that files have no name for.
    """
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(trainable, Lora):
        for weight, (down, up) in trainable.factors().items():
            name = _name(weight, names)
            tensors[f"{name}.lora_down.weight"] = _plain(down)
            tensors[f"{name}.lora_up.weight"] = _plain(up.view(*up.shape, *[1] * (down.ndim - 2)))
            tensors[f"{name}.alpha"] = torch.tensor(float(trainable.settings.scale * trainable.settings.rank))
    elif isinstance(trainable, Adapter):
        for weight in trainable.shapes:
            name = _name(weight, names)
            tensors |= {f"{name}.{end}": _plain(value) for end, value in trainable.tensors(weight).items()}
    elif isinstance(trainable, Full):
        for weight, difference in trainable.differences().items():
            stem, _, kind = weight.rpartition(".")
            name = _name(f"{stem}.weight", names)
            tensors[f"{name}.diff_b" if kind == "bias" else f"{name}.diff"] = _plain(difference)
    return tensors


def _name(weight: str, names: Mapping[str, str]) -> str:
    if weight not in names:
        raise ValueError(f"{weight}: files of LoRAs have no name for this weight, so what it learned cannot be saved")
    return names[weight]


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.detach().float().cpu().contiguous().clone()
