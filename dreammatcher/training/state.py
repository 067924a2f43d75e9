"""A training's state as one safetensors file, written whole or not at all: a run that was stopped goes on bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..whole import whole

FORMAT = "dreammatcher-training-1"


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state, and how often."""

    path: Path
    job: str  # says which pictures and settings the state belongs to
    every: int = 100  # steps


def write(path: Path, state: dict[str, Any], job: str) -> None:
    """Writes nested dicts, lists and tuples of tensors, numbers and texts. ``job`` tells whose state it is."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _packed(state, "state", tensors)
    with whole(path) as partial:
        save_file(tensors, partial, {"format": FORMAT, "job": job, "tree": json.dumps(tree)})


def read(path: Path, job: str) -> dict[str, Any] | None:
    """What :func:`write` wrote, or None where there is no file.

    Raises ValueError when the file is damaged, is no training's state, or is that of another ``job``.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); delete it to begin anew") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no state of a training: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    if metadata["job"] != job:
        raise ValueError(f"{path} belongs to a training with other pictures or settings; give this one another name, or delete "
                         "the file to begin anew")
    return _unpacked(json.loads(metadata["tree"]), tensors)


def _packed(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON, in which a tensor is the name under which it stands in ``tensors``."""
    if torch.is_tensor(value):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _packed(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_packed(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    return value


def _unpacked(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in content}
    return (list if kind == "list" else tuple)(_unpacked(item, tensors) for item in content)
