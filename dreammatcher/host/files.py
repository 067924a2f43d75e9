"""Where files of ours are saved and found: the host's output folder, and a folder of its models folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths


@dataclass(frozen=True)
class Shelf:
    """Files of one kind: in ``models/NAME`` and ``output/NAME``."""

    name: str
    hint: str  # what to do when there is none
    suffixes: tuple[str, ...] = (".safetensors",)

    def folders(self) -> list[Path]:
        return [Path(root) / self.name for root in (folder_paths.models_dir, folder_paths.get_output_directory())]

    def names(self) -> list[str]:
        """File names that a loader offers."""
        return sorted({path.name for folder in self.folders() if folder.is_dir() for path in folder.iterdir()
                       if path.suffix in self.suffixes})

    def find(self, name: str) -> Path:
        """Raises ValueError for names that leave the folders, FileNotFoundError listing them when nothing is there."""
        if Path(name).name != name:
            raise ValueError(f"file: {name!r} is a path; give the name of a file in models/{self.name} or output/{self.name}")
        for folder in self.folders():
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(f"file: {name!r} is in none of {', '.join(map(str, self.folders()))}; {self.hint}")

    def modified(self, name: str) -> float:
        """Time of the file's last change; not a number where there is none."""
        try:
            return self.find(name).stat().st_mtime
        except (OSError, ValueError):
            return float("nan")


def numbered(prefix: str) -> Path:
    """The next free ``prefix_00001_.safetensors`` in the output folder, by the host's own numbering."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(folder) / f"{name}_{counter:05}_.safetensors"
