"""Files that appear whole or not at all, and safetensors files that nothing holds on to once they are read."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to. It takes that one's place at the end, or is removed when something is raised.

    Makes the folder. Several processes may write the same file at once: one of them is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_file_name(which: str, name: str) -> None:
    """Raises ValueError, naming the input ``which``, for what is no plain name of a file."""
    if not re.fullmatch(r"[\w .+-]{1,100}", name) or name.strip().startswith(".") or not name.strip():
        raise ValueError(f"{which}: {name!r} is no name for a file; use letters, numbers, spaces, dots, - and _")


def read_tensors(path: Path, expect: Callable[[dict[str, str]], None] = lambda about: None) \
        -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises OSError and SafetensorError as safetensors does, and what ``expect``
    raises of the metadata, before any tensor is read.

    The tensors are copies: Windows lets nobody replace or delete a file while something of it is mapped.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        about = dict(file.metadata() or {})
        expect(about)
        return {name: file.get_tensor(name).clone() for name in file.keys()}, about  # noqa: SIM118  safe_open is no dict


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, of which only the head is read. Raises as :func:`read_tensors`."""
    with safe_open(path, framework="pt", device="cpu") as file:
        return dict(file.metadata() or {})


def metadata_if_any(path: Path) -> dict[str, str]:
    """:func:`read_metadata`; empty where there is no such file, or it is no safetensors file."""
    try:
        return read_metadata(path)
    except (OSError, SafetensorError):
        return {}


@contextmanager
def refused_if_damaged(name: str | Path, remedy: str) -> Iterator[None]:
    """Raises ValueError, naming the file and saying what to do, where safetensors finds that it is not whole."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{name} is not a whole safetensors file ({error}); {remedy}") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], about: dict[str, str] | None = None) -> None:
    """A safetensors file with metadata ``about``, which appears whole or not at all. No two tensors may share their memory."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(path) as partial:
        save_file(plain, partial, about)
