"""Reads what was learned from files: this pack's and others' LoRAs, embeddings, and official Custom Diffusion models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ...files import metadata_if_any, read_tensors
from ...training.bundle import NAME, TWO, bundled, rows_of
from ...training.delta import Delta, Product, delta_of, is_delta
from ...training.export import TOWERS, Learned
from ..graph.changes import Changes, changes, changes_of_all
from ..graph.notes import tell
from ..model.identity import unpatched
from .keep import WORDS
from .lora_file import Taken, taken_by
from .names import unet_names

#: kinds of models in whose folders such files lie
KINDS = ("loras", "embeddings")
#: in front of the name of an embedding, where a LoRA is called the same
EMBEDDINGS = "embeddings/"
#: names of an embedding's one tensor that say nothing about its word
NAMELESS = ("emb_params", "clip_l", "clip_h", "clip_g", "*")
#: in the names of a LoRA's tensors, of any form
LORA = re.compile(r"lora|lycoris|lokr_|hada_|dora_scale|\.diff(_b)?$")


def names() -> list[str]:
    """Files that the node offers. An embedding whose name a LoRA has too stands as ``embeddings/NAME``."""
    loras, embeddings = (folder_paths.get_filename_list(kind) for kind in KINDS)
    return sorted({*loras, *(f"{EMBEDDINGS}{name}" if name in loras else name for name in embeddings)})


def find(name: str) -> Path:
    """Path of a file that the node offers. Raises ValueError when no folder has it."""
    places = [(kind, name) for kind in KINDS]
    if name.startswith(EMBEDDINGS):
        places.append((KINDS[1], name.removeprefix(EMBEDDINGS)))
    for kind, file_name in places:
        path = folder_paths.get_full_path(kind, file_name)
        if path is not None:
            return Path(path)
    raise ValueError(f"file: {name!r} is in none of ComfyUI's folders of LoRAs and embeddings; put it there and press R")


def state(name: str | None) -> Changes:
    """State of the file and of the embeddings of its words.

    A name of None stands for a linked value that is not known yet: the state then covers all files.
    """
    if name is None:
        return changes_of_all({one: [_found(one)] for one in names()})
    path = _found(name)
    return changes({name: [path, *(_embedding(stem) or Path(stem) for stem in _words_of(path).values())]})


def _embedding(stem: str) -> Path | None:
    path = folder_paths.get_full_path(KINDS[1], f"{stem}.safetensors")
    return None if path is None else Path(path)


def _words_of(path: Path) -> dict[str, str]:
    """Word -> name of its embedding, of those that were saved with a LoRA of ours; only the file's head is read."""
    return json.loads(metadata_if_any(path).get(WORDS, "{}"))  # a damaged file is refused when the node runs


def _found(name: str) -> Path:
    try:
        return find(name)
    except ValueError:  # said when the node runs
        return Path(name)


def load_learned(model, clip, name: str) -> Learned:
    """A file as something to apply or to save. Full weights become differences to ``model``'s, without its LoRAs.

    Raises ValueError, naming the file, when it is damaged, holds code, or belongs to another kind of model.
    """
    path = find(name)
    try:
        safe = path.suffix.lower() in (".safetensors", ".sft")
        content: Any = read_tensors(path)[0] if safe else torch.load(path, map_location="cpu", weights_only=True)
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
        rows, more = _said(name, words, about)
        beside, known = _words_beside(name, path) if safe else ({}, {})
        return Learned(taken.tensors, {**beside, **rows}, {**known, **more})
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


def _words_beside(name: str, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The words that were learned and saved together with a LoRA of ours, and what is known of them."""
    about, words = metadata_if_any(path), {}
    for word, stem in _words_of(path).items():
        beside = _embedding(stem)
        if beside is None:
            tell(f"{name}: its word {word} was saved as the embedding {stem}.safetensors, which is in none of ComfyUI's folders "
                 "of embeddings; without it prompts cannot name the subject")
            continue
        words[word] = rows_of(f"its word {word!r}", read_tensors(beside)[0])
    return words, {key: about[key] for key in ("identifier", "subject", TOWERS) if key in about} if words else {}


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
    names, model_weights = unet_names(model.model), unpatched(model)
    weights = {file: weight for weight, file in names.items()}
    tensors: dict[str, torch.Tensor] = {}
    for name, value in delta.weights.items():
        layer, _, kind = name.rpartition(".")
        file = names.get(f"{layer}.weight") if delta.original else f"lora_unet_{layer.replace('.', '_')}"
        base = model_weights.get(f"diffusion_model.{weights.get(file or '', '').removesuffix('weight')}{kind}")
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
