"""A training's state as one safetensors file, written whole or not at all: a run that was stopped goes on bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from ..files import atomic_write, read_metadata, read_tensors, refused_if_damaged

FORMAT = "dreammatcher-training-1"
ANEW = "delete it to begin anew"
LEARNED = "state.learned."
#: names of number formats in safetensors files
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
         torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


@dataclass(frozen=True)
class Checkpoint:
    """The file in which a training keeps its state, and how often it does."""

    path: Path
    job: str  # says which pictures and settings the state belongs to
    minutes: float = 10.0  # between two states while it runs; 0 keeps one only when it is stopped
    kin: str = ""  # as ``job``, but the same for every rate and precision
    about: str = ""  # JSON: the run's name, and its choices by name
    end: Path | None = None  # file for the state at the end of the run, if it is kept


@dataclass(frozen=True)
class Kept:
    """The description of a state in a file, without its tensors."""

    job: str
    kin: str
    stuck: bool  # its run gave up, since losses were not finite
    about: dict[str, Any] = field(default_factory=dict)  # the run's name, and its choices by name
    step: int = field(default=0, compare=False)


def write(path: Path, state: dict[str, Any], job: str, kin: str = "", stuck: bool = False, said: str = "") -> None:
    """Writes nested dicts, lists and tuples of tensors, numbers and texts. ``job`` tells whose state it is, ``said`` its run.

    One tensor after the other goes through main memory: there is never a second copy of the whole. Raises OSError where the file
    cannot be written; one that was there stays then.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _packed(state, "state", tensors)
    about = {"format": FORMAT, "job": job, "tree": json.dumps(tree), "kin": kin, "stuck": json.dumps(stuck),
             "about": said or "{}", "step": str(state.get("step", 0))}
    with atomic_write(path) as partial, partial.open("wb") as file:
        _stream(file, tensors, about)


def size_of(state: dict[str, Any]) -> int:
    """Bytes of a state's tensors."""
    tensors: dict[str, torch.Tensor] = {}
    _packed(state, "state", tensors)
    return sum(value.nbytes for value in tensors.values())


def in_words(size: int) -> str:
    """Bytes as people read them: 10.3 GB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1000:.1f} kB"


def read(path: Path, job: str) -> dict[str, Any] | None:
    """Reads the state that :func:`write` wrote; None if there is no file. It is copied from the file, which may be replaced.

    Raises ValueError when the file is damaged, is no training's state, or is that of another ``job``.
    """
    if not path.is_file():
        return None

    def expect(metadata: dict[str, str]) -> None:
        _check(path, metadata)
        if metadata["job"] != job:
            raise ValueError(f"{path} belongs to a training with other pictures or settings; give this one another name, or "
                             "delete the file to begin anew")

    with refused_if_damaged(path, ANEW):
        tensors, metadata = read_tensors(path, expect)
    return _unpacked(json.loads(metadata["tree"]), tensors)


def about(path: Path) -> Kept:
    """Raises ValueError when the file is damaged or no training's state."""
    with refused_if_damaged(path, ANEW):
        metadata = read_metadata(path)
    _check(path, metadata)
    return Kept(metadata["job"], metadata.get("kin", ""), json.loads(metadata.get("stuck", "false")),
                json.loads(metadata.get("about", "{}")), int(metadata.get("step", 0)))


def learned_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of what a state has learned, by name; no tensor is read."""
    with refused_if_damaged(path, ANEW), safe_open(path, framework="pt", device="cpu") as file:
        return {name.removeprefix(LEARNED): tuple(file.get_slice(name).get_shape()) for name in file.keys()  # noqa: SIM118
                if name.startswith(LEARNED)}


def _check(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no state of a training: its format is {metadata.get('format')!r}, not {FORMAT!r}")


def _stream(file: BinaryIO, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """The safetensors format: the header's length, the header, and the tensors' bytes, those of the widest numbers first."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name in order:
        value, start = tensors[name], end
        end += value.nbytes
        header[name] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(tensors[name].cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _packed(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON, in which a tensor is the name under which it stands in ``tensors``."""
    if torch.is_tensor(value):
        tensors[name] = value.detach()
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
