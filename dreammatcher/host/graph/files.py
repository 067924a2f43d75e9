"""Finds and saves this pack's files: in the host's output folder, and in model folders of their own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import folder_paths

from .changes import Changes, changes, changes_of_all


def model_folders(kind: str) -> list[Path]:
    """Folders of a kind of models of ours, which the host learns of: ``models/KIND`` and what extra_model_paths.yaml names."""
    standard = os.path.join(folder_paths.models_dir, kind)
    if kind in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(kind, standard)
    else:
        folder_paths.folder_names_and_paths[kind] = ([standard], set())
    return [Path(folder) for folder in dict.fromkeys((standard, *folder_paths.get_folder_paths(kind)))]


@dataclass(frozen=True)
class Shelf:
    """Files of one kind: in the models folders of its name, in ``output/NAME``, and in what these hold."""

    name: str
    hint: str  # what to do when there is none
    suffixes: tuple[str, ...] = (".safetensors",)
    belongs: Callable[[Path], bool] | None = None  # whether a file deeper in output/NAME, or elsewhere in output, is of this kind

    def __post_init__(self) -> None:
        model_folders(self.name)

    def folders(self) -> list[Path]:
        return [*model_folders(self.name), Path(folder_paths.get_output_directory()) / self.name]

    def names(self) -> list[str]:
        """The names that a loader offers."""
        return sorted(self._files())

    def find(self, name: str) -> Path:
        """Finds a file by its name in a loader.

        Raises ValueError for names that leave the folders or that several files have, FileNotFoundError listing the folders
        when nothing is there.
        """
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
        """The state of some files, or of all if one of the names is None: a linked value that is not known yet."""
        files = self._files()
        if None in names:
            return changes_of_all({name: [path] for name, path in files.items()})
        return changes({name: [files.get(name.replace("\\", "/"), Path(name))] for name in names if name is not None})

    def _is_one(self, path: Path) -> bool:
        """True if a file of the output folder is of this kind. Files of other kinds there may have the same suffix."""
        if self.belongs is None or path.parent == Path(folder_paths.get_output_directory()) / self.name:
            return True
        try:
            known = path.stat()
        except OSError:
            return False
        return _asked(self.belongs, path, known.st_size, known.st_mtime_ns)

    def _files(self) -> dict[str, Path]:
        """Every file by the shortest name that is its own: that of the file, or with its folders.

        A file that lies directly in one of the folders has its plain name before all others, in the order of the folders.
        """
        names: dict[Path, str] = {}  # path -> name with folders
        root = Path(folder_paths.get_output_directory())
        for folder in (*self.folders(), *([root] if self.belongs else [])):
            for path in _below(folder, self.suffixes):
                if path not in names and (folder not in (root, root / self.name) or self._is_one(path)):
                    names[path] = path.relative_to(folder).as_posix()
        nested = Counter(path.name for path, name in names.items() if "/" in name)
        paths = {}
        for path, name in sorted(names.items(), key=lambda entry: "/" in entry[1]):
            short = [path.name] if name == path.name or nested[path.name] == 1 else []
            longer = (name, "/".join(path.parts[-3:]), path.as_posix())
            paths[next(one for one in (*short, *longer) if one not in paths)] = path
        return paths


@lru_cache(maxsize=10_000)
def _asked(belongs: Callable[[Path], bool], path: Path, size: int, time: int) -> bool:
    return belongs(path)


#: by folder and suffixes: when the folders in it had last changed, and the files; the host asks for names several times a queue
_walked: dict[tuple[Path, tuple[str, ...]], tuple[dict[str, int | None], list[Path]]] = {}


def _below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files in a folder and its folders, linked ones too, in the order of their names."""
    times, files = _walked.get((folder, suffixes), ({}, []))
    if not times or any(_time(place) != time for place, time in times.items()):
        times = {str(folder): _time(str(folder))}
        files = list(_walk(folder, suffixes, times))
        _walked[folder, suffixes] = times, files
    return files


def _time(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def _walk(folder: Path, suffixes: tuple[str, ...], times: dict[str, int | None]) -> Iterator[Path]:
    """The files; into ``times`` goes when each folder had changed before it was read."""
    for place, folders, files in walk(folder):
        times |= {inner: _time(inner) for inner in (os.path.join(place, name) for name in folders)}
        yield from (Path(place) / name for name in sorted(files) if name.endswith(suffixes) and not name.startswith("."))


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks a folder like os.walk, by name and through links, without hidden folders and those that a link leads back to."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, folders, files


def numbered(prefix: str) -> Path:
    """The next free ``prefix_00001_.safetensors`` in the output folder, by the host's own numbering."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(folder) / f"{name}_{counter:05}_.safetensors"
