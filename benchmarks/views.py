"""``python -m benchmarks.views``: what a second and a third view of the subject add, and whether two subjects stay apart.

Prints two tables of docs/measured.md and writes reports into build/views and build/pairs. Every figure is on subjects that no
training picture had.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dreammatcher.evaluation.report import write
from dreammatcher.evaluation.statistics import Measured, summary
from harness.boot import Host
from harness.library import ROOT
from toybox.draw import render
from toybox.evaluation import ERROR, SCENE, Truth, cases, measured
from toybox.judge import load_judge, look, palette_distance, part_colours
from toybox.world import CLASSES, SCENES, caption, face, random_pose, random_scene, unseen_subject

from .toybox_runner import ToyboxRunner


def measured_arms(folder: Path, rows: dict[str, dict[str, dict[str, float]]],
                  pictures: dict[str, dict[str, np.ndarray]]) -> list[Measured]:
    """Arms as reports take them, of arm -> case -> measures and the same of pictures, which are kept in ``folder``."""
    arms = []
    for name, scores in rows.items():
        files = {key: folder / name / f"{key}.png" for key in scores}
        for key, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[name][key]).save(file)
        arms.append(Measured(name, scores, {key: key for key in scores}, files, {ERROR: "CIEDE2000, by Toybox's judge"}))
    write(summary(arms), folder / "report")
    return arms


def matched(runner: ToyboxRunner, model: object, reference: object, subject: object) -> object:
    """A model that matches a reference, or a set of them, with the settings of new nodes."""
    settings = runner.module("dreammatcher.matching.settings")
    return runner.module("dreammatcher.host.matching.apply").apply(
        model, reference, settings.MaskSettings(None, subject, carried=True),
        settings.ApplySettings(match=settings.PRESETS["best"]))[0]


def several_views(runner: ToyboxRunner, judge, count: int, folder: Path) -> list[Measured]:
    """The target faces away from the first view; the second view faces as the target does, the third is any other."""
    names = ("plain", "1 view", "2 views", "3 views")
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    made_of: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    combined = runner.module("dreammatcher.matching.reference").combined
    for number, case in enumerate(cases(count)):
        wanted = "left" if case.pose.facing == "right" else "right"
        case = replace(case, facing=wanted)
        rng = random.Random(f"views-{number}")
        poses = [case.pose, face(random_pose(rng), wanted), random_pose(rng)]
        pictures = [render(case.subject, pose, case.scene) for pose in poses]
        inverted = [runner.reference(picture, caption(case.subject, facing=pose.facing, scene=case.scene.name), case.subject.kind)
                    for (picture, _), pose in zip(pictures, poses)]
        target, subject = runner.prompt(case.prompt(), case.subject.kind)
        negative = runner.prompt("")[0]
        sets = [inverted[0][0], combined(inverted[0][0], inverted[1][0])]
        sets.append(combined(sets[1], inverted[2][0]))
        models = [runner.model,
                  *(runner.guided(matched(runner, runner.model, chosen, subject), mode="inside") for chosen in sets)]
        shown = [runner.sample(model, target, negative, case.seed) for model in models]
        truth = Truth(*pictures[0], case.subject.kind, case.wanted_scene)
        for name, picture in zip(rows, shown):
            measures = measured(judge, picture, truth)
            rows[name][f"{case.subject.kind}{number}"] = {
                metric: measures[metric] for metric in (ERROR, SCENE) if metric in measures}
            made_of[name][f"{case.subject.kind}{number}"] = picture
        print(f"views {number + 1} of {count}", flush=True)
    return measured_arms(folder, rows, made_of)


SIDES = ("left", "right")


def two_subjects(runner: ToyboxRunner, judge, count: int, folder: Path) -> list[Measured]:
    """Two subjects of different classes side by side, by regional prompts on a latent twice as wide.

    ``own`` is the subject error of each half; ``other``, for leakage, how far the half's subject is from the colours of the
    other half's reference.
    """
    names = ("plain", "left matched", "both matched")
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    made_of: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for number in range(count):
        rng = random.Random(f"pairs-{number}")
        kinds = rng.sample(CLASSES, 2)
        scene = random_scene(rng)
        subjects = [unseen_subject(30_000 + 2 * number + side, kind) for side, kind in enumerate(kinds)]
        pictures = [render(subject, random_pose(rng), scene) for subject in subjects]
        references = [runner.reference(picture, caption(subject, scene=scene.name), subject.kind)
                      for (picture, _), subject in zip(pictures, subjects)]
        wanted = rng.choice([name for name in SCENES if name != scene.name])
        prompts = [runner.prompt(caption(subject, scene=wanted), subject.kind) for subject in subjects]
        regions = [[[conditioning[0][0], {**conditioning[0][1], "area": (16, 16, 0, 16 * side), "strength": 1.0}]]
                   for side, (conditioning, _) in enumerate(prompts)]
        models = [runner.model]
        for side in range(2):
            models.append(matched(runner, models[-1], references[side][0], prompts[side][1]))
        shown = [runner.sample(model, regions[0] + regions[1], runner.prompt("")[0], 900 + number, width=32) for model in models]
        palettes = [[colour for colour, _ in part_colours(*pictures[side], kinds[side]).values()] for side in range(2)]
        for name, picture in zip(rows, shown):
            errors: dict[str, float | None] = {}
            for side, half in enumerate((picture[:, :128], picture[:, 128:])):
                half = np.ascontiguousarray(half)
                errors[f"{SIDES[side]} own"] = measured(judge, half, Truth(*pictures[side], kinds[side], wanted)).get(ERROR)
                errors[f"{SIDES[side]} other"] = palette_distance(half, look(judge, half).parts, kinds[side], palettes[1 - side])
            rows[name][f"pair{number}"] = {metric: value for metric, value in errors.items() if value is not None}
            made_of[name][f"pair{number}"] = picture
        print(f"pairs {number + 1} of {count}", flush=True)
    return measured_arms(folder, rows, made_of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--only", choices=("views", "pairs"))
    options = parser.parse_args()
    runner, judge = ToyboxRunner(Host(ROOT / "build" / "host")), load_judge()
    with torch.inference_mode():
        for name, study in (("views", several_views), ("pairs", two_subjects)):
            if options.only in (None, name):
                print(summary(study(runner, judge, options.cases, ROOT / "build" / name)).markdown())


if __name__ == "__main__":
    main()
