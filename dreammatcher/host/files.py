"""Where references are saved and found: the host's output folder and models/dreammatcher."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..matching import reference as references

FOLDER = "dreammatcher"


def folders() -> list[Path]:
    return [Path(folder_paths.models_dir) / FOLDER, Path(folder_paths.get_output_directory()) / FOLDER]


def reference_names() -> list[str]:
    """File names that the loader offers."""
    return sorted({path.name for folder in folders() if folder.is_dir() for path in folder.glob("*.safetensors")})


def save_reference(reference: references.Reference, prefix: str) -> Path:
    """Writes ``prefix_00001_.safetensors`` with the host's own numbering; returns the path."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    references.save(reference, path)
    return path


def load_reference(name: str) -> references.Reference:
    """Raises ValueError for names that leave the folders, FileNotFoundError listing them when nothing is there."""
    return references.load(_find(name))


def modified(name: str) -> float:
    try:
        return _find(name).stat().st_mtime
    except (OSError, ValueError):
        return float("nan")


def _find(name: str) -> Path:
    if Path(name).name != name:
        raise ValueError(f"file: {name!r} is a path; give the name of a file in models/{FOLDER} or output/{FOLDER}")
    for folder in folders():
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"file: {name!r} is in none of {', '.join(map(str, folders()))}; save a reference first")
