"""What was learned, read from files: our own and others' LoRAs, embeddings, and official Custom Diffusion models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import folder_paths
import torch
from safetensors.torch import load_file

from ...training.bundle import NAME, TWO, bundled, rows_of
from ...training.delta import Delta, Product, delta_of, is_delta
from ...training.export import TOWERS, Learned
from ..identity import unpatched
from ..notes import tell
from .lora_file import Taken, taken_by
from .names import unet_names

#: kinds of models in whose folders such files lie
KINDS = ("loras", "embeddings")
#: names of an embedding's one tensor that say nothing about its word
NAMELESS = ("emb_params", "clip_l", "clip_h", "clip_g", "*")
#: in the names of a LoRA's tensors, of any form
LORA = re.compile(r"lora|lycoris|lokr_|hada_|dora_scale|\.diff(_b)?$")


def names() -> list[str]:
    """Files that the node offers."""
    return sorted({name for kind in KINDS for name in folder_paths.get_filename_list(kind)})


def find(name: str) -> Path:
    """Raises ValueError when no folder has the file."""
    for kind in KINDS:
        path = folder_paths.get_full_path(kind, name)
        if path is not None:
            return Path(path)
    raise ValueError(f"file: {name!r} is in none of ComfyUI's folders of LoRAs and embeddings; put it there and press R")


def modified(name: str) -> float:
    """Time of the file's last change; not a number where there is none."""
    try:
        return find(name).stat().st_mtime
    except (OSError, ValueError):
        return float("nan")


def load_learned(model, clip, name: str) -> Learned:
    """A file as something to apply or to save. Full weights become differences to ``model``'s, without its LoRAs.

    Raises ValueError, naming the file, when it is damaged, holds code, or belongs to another kind of model.
    """
    path = find(name)
    try:
        safe = path.suffix.lower() in (".safetensors", ".sft")
        content = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors have errors of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"file: {name} cannot be read ({reason}); only weights are read, never code") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"file: {name} holds {type(content).__name__} and no weights by name")
    content = content.get("state_dict", content)
    content = content.get("string_to_param", content)  # older embeddings
    about = {"method": "file", "file": path.name}
    try:
        if is_delta(content):
            delta = delta_of(content)
            if delta.left_out:
                tell(f"{name}: {delta.left_out} is left out; keys, values and words are taken")
            return Learned(_tensors(model, delta), {word: rows.float() for word, rows in delta.words.items()}, about)
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"file: {name} is no Custom Diffusion model that can be read: {error}") from error
    tensors = {key: value for key, value in content.items() if torch.is_tensor(value)}
    words = bundled(tensors)
    plain = {key: value for key, value in tensors.items() if not NAME.fullmatch(key)}
    taken = taken_by(model, clip, plain) if set(plain) - set(NAMELESS) else Taken({}, [], {})
    if taken.tensors or words:
        if left := taken.left_out():
            tell(f"{name}: {left}; they are left out")
        return Learned(taken.tensors, *_said(name, words, about))
    if set(tensors) == set(TWO) or len(tensors) == 1:
        stem, key = re.sub(r"[^\w-]", "", path.stem) or "learned", next(iter(tensors))
        word = f"<{stem}>" if key in NAMELESS else key
        return Learned({}, *_said(name, {word: tensors}, about))
    if taken.unlike:
        raise ValueError(f"file: {name} is a LoRA for another kind of model: {taken.left_out()}")
    if any(LORA.search(key) for key in tensors):
        raise ValueError(f"file: {name} is a LoRA for another kind of model: none of its weights is in this one; its names begin "
                         f"with {', '.join(list(tensors)[:3])}")
    raise ValueError(f"file: {name} is no LoRA, embedding or Custom Diffusion model; its names begin with "
                     f"{', '.join(list(content)[:3])}")


def _said(name: str, words: Mapping[str, Mapping[str, torch.Tensor]],
          about: dict[str, str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Vectors of each word, and what is said about the file. Raises ValueError, naming it, for what is no embedding."""
    try:
        rows = {word: rows_of("it" if len(words) == 1 else f"its word {word!r}", tensors) for word, tensors in words.items()}
    except ValueError as error:
        raise ValueError(f"file: {name} cannot be read: {error}") from error
    widths = {f"{key}:{tensors[key].shape[-1]}": None for tensors in words.values() if set(tensors) == set(TWO) for key in TWO}
    return rows, {**about, TOWERS: ",".join(widths)} if widths else about


def _tensors(model, delta: Delta) -> dict[str, torch.Tensor]:
    """The change that a delta makes to ``model``, as tensors of a LoRA file."""
    names, own = unet_names(model.model), unpatched(model)
    weights = {file: weight for weight, file in names.items()}
    tensors: dict[str, torch.Tensor] = {}
    for name, value in delta.weights.items():
        layer, _, kind = name.rpartition(".")
        file = names.get(f"{layer}.weight") if delta.original else f"lora_unet_{layer.replace('.', '_')}"
        base = own.get(f"diffusion_model.{weights.get(file, '').removesuffix('weight')}{kind}")
        if base is None:
            raise ValueError(f"{name}: this model has no such weight; the file belongs to another kind of model")
        shape = (value.up.shape[0], value.down.shape[1]) if isinstance(value, Product) else tuple(value.shape)
        if shape != tuple(base.shape):
            raise ValueError(f"{name}: it is {'x'.join(map(str, shape))} in the file and {'x'.join(map(str, base.shape))} in the "
                             "model; the file belongs to another kind of model")
        if isinstance(value, Product):
            tensors |= {f"{file}.lora_up.weight": value.up.float(), f"{file}.lora_down.weight": value.down.float(),
                        f"{file}.alpha": torch.tensor(float(value.down.shape[0]))}
        else:
            tensors[f"{file}.diff_b" if kind == "bias" else f"{file}.diff"] = value.float() - base.detach().float().cpu()
    return {name: value.contiguous() for name, value in tensors.items()}
