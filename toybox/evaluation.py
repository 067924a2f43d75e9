"""Toybox as a protocol of :mod:`dreammatcher.evaluation`: subjects that it never saw, and scores with the truth at hand."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from dreammatcher.evaluation.protocols import Protocol, Subject

from .draw import render
from .judge import load_judge, look, subject_error
from .world import CLASSES, SCENES, random_pose, random_scene, unseen_subject

SUBJECTS, SAMPLES = 10, 2
#: prompts in Toybox's own words
PROMPTS = tuple(f"a photo of a {{}} {words}" for words in SCENES.values())


def drawn(number: int) -> tuple[np.ndarray, np.ndarray, str, str]:
    """The reference of a subject: picture, parts, class and scene."""
    rng, kind = random.Random(f"protocol-{number}"), CLASSES[number % len(CLASSES)]
    scene = random_scene(rng)
    picture, parts = render(unseen_subject(60_000 + number, kind), random_pose(rng), scene)
    return np.array(picture), parts, kind, scene.name


def protocol(folder: Path) -> Protocol:
    """Ten subjects with a picture each, which are drawn into ``folder``."""
    subjects = []
    for number in range(SUBJECTS):
        picture, _, kind, _ = drawn(number)
        path = folder / f"{kind}{number}" / "00.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(picture).save(path)
        subjects.append(Subject(f"{kind}{number}", kind, (path,), PROMPTS))
    return Protocol("toybox", tuple(subjects), SAMPLES)


def judged(pictures: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Case -> subject error (in CIELAB, lower is better), and whether class and scene are as the prompt says."""
    judge, found = load_judge(), {}
    for key, path in pictures.items():
        name, prompt, _ = key.rsplit("-", 2)
        reference, parts, kind, _ = drawn(int(name.lstrip("abcdefghijklmnopqrstuvwxyz")))
        with Image.open(path) as image:
            picture = np.array(image.convert("RGB").resize((128, 128)))
        seen = look(judge, picture)
        error = subject_error(picture, seen.parts, reference, parts, kind)
        wanted = PROMPTS[int(prompt)]
        row = {"class": float(seen.kind == kind), "scene": float(wanted.endswith(SCENES[seen.scene]))}
        found[key] = row if error is None else {"subject error": error, **row}
    return found
