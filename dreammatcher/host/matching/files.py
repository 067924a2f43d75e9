"""Folder and files of saved references."""

from __future__ import annotations

from pathlib import Path

from ...matching import reference as references
from ..graph.files import Shelf, numbered

REFERENCES = Shelf("dreammatcher", "save a reference first", belongs=references.is_reference)


def save_reference(reference: references.Reference, prefix: str) -> Path:
    """Writes ``prefix_00001_.safetensors``; returns the path."""
    path = numbered(prefix)
    references.save(reference, path)
    return path


def load_reference(name: str) -> references.Reference:
    """Loads a reference by its name. Raises as :meth:`Shelf.find`, and ValueError for a file that is no whole reference."""
    return references.load(REFERENCES.find(name))
