"""Where files of ours are saved and found: the host's output folder, and folders of models of our own kinds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from .changes import Changes, changes


def model_folders(kind: str) -> list[Path]:
    """Folders of a kind of models of ours, which the host learns of: ``models/KIND`` and what extra_model_paths.yaml names."""
    own = os.path.join(folder_paths.models_dir, kind)
    if kind in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(kind, own)
    else:
        folder_paths.folder_names_and_paths[kind] = ([own], set())
    return [Path(folder) for folder in dict.fromkeys((own, *folder_paths.get_folder_paths(kind)))]


@dataclass(frozen=True)
class Shelf:
    """Files of one kind: in the models folders of its name, in ``output/NAME``, and in what these hold."""

    name: str
    hint: str  # what to do when there is none
    suffixes: tuple[str, ...] = (".safetensors",)
    belongs: Callable[[Path], bool] | None = None  # whether a file elsewhere in the output folder is of this kind too

    def __post_init__(self) -> None:
        model_folders(self.name)

    def folders(self) -> list[Path]:
        return [*model_folders(self.name), Path(folder_paths.get_output_directory()) / self.name]

    def names(self) -> list[str]:
        """What a loader offers."""
        return sorted(self._files())

    def find(self, name: str) -> Path:
        """Raises ValueError for names that leave the folders or that several files have, FileNotFoundError listing the folders
        when nothing is there."""
        name, files = name.replace("\\", "/"), self._files()
        if name in files:
            return files[name]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"file: {name!r} is a path; give the name of a file in models/{self.name} or output/{self.name}")
        alike = sorted(other for other in files if other.endswith(f"/{name}"))
        if alike:
            raise ValueError(f"file: several are called {name!r}; choose one of {', '.join(alike)}")
        raise FileNotFoundError(f"file: {name!r} is in none of {', '.join(map(str, self.folders()))}; {self.hint}")

    def changes(self, *names: str | None) -> Changes:
        """Of some files; of all where one of the names is None, which stands for a linked value that is not known yet."""
        files = self._files()
        chosen = files if None in names else {name: files.get(name.replace("\\", "/"), Path(name)) for name in names}
        return changes({name: [path] for name, path in chosen.items()})

    def _files(self) -> dict[str, Path]:
        """Every file by the shortest name that is its own: that of the file, or with its folders.

        A file that lies directly in one of the folders has its plain name before all others, in the order of the folders.
        """
        found: dict[Path, str] = {}  # path -> name with folders
        for folder in self.folders():
            for path in _below(folder, self.suffixes):
                found.setdefault(path, path.relative_to(folder).as_posix())
        root = Path(folder_paths.get_output_directory())
        for path in _below(root, self.suffixes) if self.belongs else ():
            if path not in found and self.belongs(path):
                found[path] = path.relative_to(root).as_posix()
        nested = Counter(path.name for path, name in found.items() if "/" in name)
        made = {}
        for path, name in sorted(found.items(), key=lambda entry: "/" in entry[1]):
            short = [path.name] if name == path.name or nested[path.name] == 1 else []
            longer = (name, "/".join(path.parts[-3:]), path.as_posix())
            made[next(one for one in (*short, *longer) if one not in made)] = path
        return made


def _below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files in a folder and its folders, linked ones too, in the order of their names."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(files) if name.endswith(suffixes) and not name.startswith("."))


def numbered(prefix: str) -> Path:
    """The next free ``prefix_00001_.safetensors`` in the output folder, by the host's own numbering."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(folder) / f"{name}_{counter:05}_.safetensors"
