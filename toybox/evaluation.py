"""Toybox as a protocol of :mod:`dreammatcher.evaluation`: subjects that it never saw, and measures with the truth at hand.

Everything that is measured on Toybox is measured here, whether a workflow made the pictures or a benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dreammatcher.evaluation import protocols
from dreammatcher.evaluation.runner import Folder
from dreammatcher.evaluation.statistics import Scores
from dreammatcher.files import atomic_write

from .draw import render
from .faults import fates, halo
from .judge import Judge, Verdict, coherence, load_judge, look, palette_distance, part_colours, purity, subject_error
from .layout import background_change, edge_overlap, silhouette_iou, structure_iou
from .scores import CLASS, ERROR, SCENE
from .shapes import PART_ROLES
from .world import CLASSES, SCENES, Pose, Scene, Subject, caption, random_pose, random_scene, unseen_subject

#: no default was chosen on these
FIRST, COUNT = 40, 40
#: names of measures; the four of the layout are against the plain model's picture of the same seed
PURITY, COHERENCE = "purity", "coherence"
#: of pictures of the class alone: how far they are from the subject's colours
DRIFT = "distance of the class"
PARTS, SILHOUETTE, EDGES, BACKGROUND = "part IoU", "silhouette IoU", "edges", "background change"
#: share of the ring around the subject that differs visibly from the plain picture
HALO = "halo"


@dataclass(frozen=True)
class Case:
    """One reference and one picture to make of it."""

    subject: Subject
    pose: Pose
    scene: Scene
    wanted_scene: str
    facing: str | None
    seed: int

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        return render(self.subject, self.pose, self.scene)

    def reference_prompt(self) -> str:
        return caption(self.subject, scene=self.scene.name)

    def prompt(self) -> str:
        return caption(self.subject, facing=self.facing, scene=self.wanted_scene)

    def truth(self) -> Truth:
        return Truth(*self.reference(), self.subject.kind, self.wanted_scene)


def cases(count: int, first: int = 0, seeds: int = 0) -> list[Case]:
    """Classes in turn; every case has its own subject, poses, scenes and seed, all unseen in training.

    ``seeds`` numbers the seeds that the same subjects and scenes are drawn with: 0, 1, 2 and so on.
    """
    drawn = []
    for index in range(first, first + count):
        rng = random.Random(f"quality-{index}")
        scene = random_scene(rng)
        wanted = rng.choice([name for name in sorted(SCENES) if name != scene.name])
        drawn.append(Case(unseen_subject(10_000 + index, CLASSES[index % len(CLASSES)]), random_pose(rng), scene, wanted,
                          rng.choice((None, "left", "right")), 500 + index + 100_000 * seeds))
    return drawn


def protocol(folder: Path, count: int = COUNT, first: int = FIRST, seeds: int = 0) -> protocols.Protocol:
    """The cases as subjects of one picture, one prompt and one seed each. Their pictures are drawn into ``folder``."""
    subjects = []
    for index, case in enumerate(cases(count, first, seeds), first):
        kind = case.subject.kind
        path = folder / f"{kind}{index}" / "00.png"
        if not path.exists():
            with atomic_write(path) as partial:
                Image.fromarray(case.reference()[0]).save(partial, "PNG")
        prompt = case.prompt().replace(kind, "{}", 1)
        subjects.append(protocols.Subject(f"{kind}{index}", kind, (path,), (prompt,), case.seed))
    return protocols.Protocol("toybox", tuple(subjects), 1)


@dataclass(frozen=True, eq=False)
class Truth:
    """The content that a picture is to show."""

    reference: np.ndarray  # uint8 [128, 128, 3]
    parts: np.ndarray  # uint8 [128, 128], of the reference
    kind: str
    scene: str


def measured(judge: Judge, picture: np.ndarray, truth: Truth,
             plain: tuple[np.ndarray, Verdict] | None = None) -> dict[str, float]:
    """Every measure that can be taken of a picture uint8 [128, 128, 3]; ``plain`` is another one with what the judge sees in it.

    The subject's error is in CIEDE2000, the background's change in 0..255, everything else in 0..1.
    """
    seen, kind = look(judge, picture), truth.kind
    measures = {ERROR: subject_error(picture, seen.parts, truth.reference, truth.parts, kind)}
    if plain is not None:
        other, parts = plain[0], plain[1].parts
        measures |= {PARTS: structure_iou(seen.parts, parts), SILHOUETTE: silhouette_iou(seen.parts, parts),
                     EDGES: edge_overlap(picture, other), BACKGROUND: background_change(picture, seen.parts, other, parts),
                     HALO: halo(picture, seen.parts, other, parts),
                     **fates(picture, seen.parts, other, parts, truth.reference, truth.parts, kind)}
    measures |= {PURITY: purity(picture, seen.parts, kind), COHERENCE: coherence(picture, seen.parts, kind),
                 SCENE: float(seen.scene == truth.scene), CLASS: float(seen.kind == kind)}
    return {name: value for name, value in measures.items() if value is not None}


def drift(judge: Judge, picture: np.ndarray, truth: Truth) -> dict[str, float]:
    """Distance of a picture of the class alone from the reference's colours (CIEDE2000). The class is kept where it is large."""
    colours = part_colours(truth.reference, truth.parts, truth.kind)
    palette = [colour for part, (colour, _) in colours.items() if PART_ROLES[truth.kind][part] != "white"]
    distance = palette_distance(picture, look(judge, picture).parts, truth.kind, palette)
    return {} if distance is None else {DRIFT: distance}


def loaded(path: Path) -> np.ndarray:
    """A picture uint8 [128, 128, 3]."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((128, 128)))


def judged(pictures: Mapping[str, Path], plain: Mapping[str, Path] | None = None) -> dict[str, dict[str, float]]:
    """Case -> its measures; of the layout too where there is a ``plain`` picture of the case. Of a class alone only its drift."""
    judge, results = load_judge(), {}
    for key, path in pictures.items():
        number = int(key.split("-")[0].lstrip("abcdefghijklmnopqrstuvwxyz"))
        truth = cases(1, number)[0].truth()
        if "-class-" in key:
            results[key] = drift(judge, loaded(path), truth)
            continue
        other = loaded(plain[key]) if plain and key in plain else None
        results[key] = measured(judge, loaded(path), truth, None if other is None else (other, look(judge, other)))
    return results


def judge_run(cases: list[protocols.Case], folder: Folder, first: Folder) -> tuple[Scores, dict[str, str]]:
    """A :class:`~dreammatcher.evaluation.scoring.Judge` of Toybox's pictures, which knows the truth. The measures of the layout
    are against the ``first`` run, which is to be the plain model's."""
    done, plain = ({case.key: run.picture(case) for case in cases if run.done(case)} for run in (folder, first))
    return judged(done, None if first == folder else plain), {ERROR: "Toybox's judge"}
