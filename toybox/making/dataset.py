"""Training pictures on disk (outside git): rendered once, read as memory maps."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..draw import SIZE, render
from ..world import Pose, Scene, Subject, random_pose, random_scene, training_subject

#: training pictures and checkpoints; TOYBOX_BUILD names another folder
BUILD = Path(os.environ.get("TOYBOX_BUILD") or Path(__file__).resolve().parents[2] / "build" / "toybox")


@dataclass(frozen=True)
class Picture:
    """The content of one training picture."""

    subject: Subject
    pose: Pose
    scene: Scene


def picture(index: int) -> Picture:
    rng = random.Random(f"training-{index}")
    return Picture(training_subject(rng), random_pose(rng), random_scene(rng))


def _draw(index: int) -> tuple[np.ndarray, np.ndarray]:
    shown = picture(index)
    return render(shown.subject, shown.pose, shown.scene)


@dataclass(frozen=True, eq=False)
class Dataset:
    pictures: np.ndarray  # uint8 [N, 128, 128, 3]
    labels: np.ndarray  # uint8 [N, 128, 128], indices into PART_LABELS
    shown: list[Picture]

    def __len__(self) -> int:
        return len(self.shown)

    def alike(self, count: int) -> list[list[int]]:
        """Groups of two and more of the first ``count`` pictures whose subjects have one class and the same colour names."""
        groups: dict[tuple, list[int]] = {}
        for row, shown in enumerate(self.shown[:count]):
            groups.setdefault((shown.subject.kind, *shown.subject.colour_names), []).append(row)
        return [rows for rows in groups.values() if len(rows) > 1]


def render_dataset(count: int, folder: Path = BUILD) -> None:
    """Draws ``count`` training pictures with a process for each core and writes them to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, (count, SIZE, SIZE))
    with multiprocessing.Pool() as pool:
        for index, (image, label) in enumerate(pool.imap(_draw, range(count), chunksize=64)):
            pictures[index], labels[index] = image, label
    (folder / "count.json").write_text(json.dumps({"count": count, "example": asdict(picture(0))}))


def open_dataset(folder: Path = BUILD) -> Dataset:
    """The rendered pictures. Raises FileNotFoundError when ``python -m toybox.making.render`` has not run."""
    if not (folder / "count.json").is_file():
        raise FileNotFoundError(f"{folder} holds no rendered pictures; run `python -m toybox.making.render` first")
    count = json.loads((folder / "count.json").read_text())["count"]
    with multiprocessing.Pool() as pool:
        shown = pool.map(picture, range(count), chunksize=1024)
    return Dataset(np.load(folder / "pictures.npy", mmap_mode="c"), np.load(folder / "labels.npy", mmap_mode="c"), shown)
