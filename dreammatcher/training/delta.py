"""Files of official Custom Diffusion models: what they say about keys, values and new words.

Three forms are known: the authors' ``delta.bin`` for diffusers, plain or compressed by SVD; their ``delta.ckpt`` for the
original code; and the files of current diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

ORIGINAL_PREFIX = "model.diffusion_model."
#: X.processor.to_k_custom_diffusion.weight, and X.processor.to_out_custom_diffusion.0.bias
PROCESSOR = re.compile(r"\.processor\.(to_\w+?)_custom_diffusion\.")
#: the original code's file does not say what its words are called; the authors count them
WORD = "<new{}>"


@dataclass(frozen=True, eq=False)
class Product:
    """A low-rank change: ``up`` @ ``down`` is added to the model's weight."""

    up: torch.Tensor  # [out, r]
    down: torch.Tensor  # [r, in]


@dataclass(frozen=True, eq=False)
class Delta:
    """Content of a Custom Diffusion file. Its weights replace the model's.

    Names are diffusers' paths or, if ``original``, the UNet's own.
    """

    weights: dict[str, torch.Tensor | Product]
    words: dict[str, torch.Tensor] = field(default_factory=dict)  # word -> vectors [V, D]
    original: bool = False
    left_out: str = ""  # what else the file holds


def is_delta(content: Mapping) -> bool:
    """True for a Custom Diffusion file, rather than a LoRA or an embedding."""
    return "unet" in content or "modifier_token" in content or any(
        name.startswith(ORIGINAL_PREFIX) or "_custom_diffusion" in name for name in content)


def delta_of(content: Mapping) -> Delta:
    """The content of one of the three files, what is under "state_dict" where a file has that.

    Raises ValueError for what is none of them, and for words of two text encoders.
    """
    if "unet" in content or "modifier_token" in content:
        weights = {name: _change(value, name) for name, value in content.get("unet", {}).items()}
        words = {word: _rows(word, value) for word, value in content.get("modifier_token", {}).items()}
        return Delta(_plain(weights), words, left_out="its text encoder" if content.get("text_encoder") else "")
    originals = {name.removeprefix(ORIGINAL_PREFIX): value for name, value in content.items() if name.startswith(ORIGINAL_PREFIX)}
    if originals:
        rows = content.get("embed", torch.empty(0, 0))
        return Delta(originals, {WORD.format(number + 1): row[None] for number, row in enumerate(rows)}, original=True)
    weights = _plain({name: value for name, value in content.items() if "_custom_diffusion" in name})
    if not weights:
        raise ValueError("it holds neither keys and values of a Custom Diffusion model nor a new word; its names begin with "
                         f"{', '.join(list(content)[:3])}")
    return Delta(weights)


def _plain(weights: Mapping[str, torch.Tensor | Product]) -> dict[str, torch.Tensor | Product]:
    """``X.processor.to_k_custom_diffusion.weight`` as ``X.to_k.weight``."""
    return {PROCESSOR.sub(r".\1.", name): value for name, value in weights.items()}


def _change(value: object, name: str) -> torch.Tensor | Product:
    if isinstance(value, Mapping):
        if set(value) != {"u", "v"}:
            raise ValueError(f"{name}: a compressed weight has a u and a v, and this one has {', '.join(map(str, value))}")
        return Product(value["u"], value["v"])
    if not torch.is_tensor(value):
        raise ValueError(f"{name}: it is no weight but {type(value).__name__}")
    return value


def _rows(word: str, value: object) -> torch.Tensor:
    if not torch.is_tensor(value):
        raise ValueError(f"the word {word!r} has vectors for several text encoders (SDXL); words are read for models with one")
    return value if value.ndim == 2 else value[None]
