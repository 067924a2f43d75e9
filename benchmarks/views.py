"""``python -m benchmarks.views``: what a second and a third view of the subject add, and whether two subjects stay apart.

Prints two tables of docs/measured.md. Every figure is on subjects that no training picture had.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace

import numpy as np
import torch

from harness.boot import Host
from harness.library import ROOT
from toybox.draw import render
from toybox.judge import load_judge, look, palette_distance, part_colours, subject_error
from toybox.world import CLASSES, SCENES, caption, face, random_pose, random_scene, unseen_subject

from .studio import Studio, cases, save_strip


def mean(values: list[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def several_views(studio: Studio, judge, count: int, folder=None) -> str:
    """The target faces away from the first view; the second view faces as the target does, the third is any other."""
    errors: dict[str, list[float | None]] = {"plain": [], "1 view": [], "2 views": [], "3 views": []}
    combined = studio.module("dreammatcher.matching.reference").combined
    for number, case in enumerate(cases(count)):
        wanted = "left" if case.pose.facing == "right" else "right"
        case = replace(case, facing=wanted)
        rng = random.Random(f"views-{number}")
        poses = [case.pose, face(random_pose(rng), wanted), random_pose(rng)]
        pictures = [render(case.subject, pose, case.scene) for pose in poses]
        made = [studio.reference(picture, caption(case.subject, facing=pose.facing, scene=case.scene.name), case.subject.kind)
                for (picture, _), pose in zip(pictures, poses)]
        target, subject = studio.prompt(case.prompt(), case.subject.kind)
        negative = studio.prompt("")[0]
        mask = studio.module("dreammatcher.matching.settings").MaskSettings(None, subject)
        sets = [made[0][0], combined(made[0][0], made[1][0])]
        sets.append(combined(sets[1], made[2][0]))
        apply = studio.module("dreammatcher.host.matching.apply").apply
        settings = studio.module("dreammatcher.matching.settings").ApplySettings()
        models = [studio.model, *(apply(studio.model, chosen, mask, settings)[0] for chosen in sets)]
        shown = [studio.sample(model, target, negative, case.seed) for model in models]
        for values, picture in zip(errors.values(), shown):
            values.append(subject_error(picture, look(judge, picture).parts, *pictures[0], case.subject.kind))
        if folder:
            save_strip(folder, number, [picture for picture, _ in pictures] + shown)
        print(f"views {number + 1} of {count}", flush=True)
    lines = ["| references | subject error ↓ |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {mean(values):.1f} |" for name, values in errors.items()])


SIDES = ("left", "right")


def two_subjects(studio: Studio, judge, count: int, folder=None) -> str:
    """Two subjects of different classes side by side, by regional prompts on a latent twice as wide.

    ``own`` is the subject error of each half; ``other``, for leakage, how far the half's subject is from the colours of the
    other half's reference.
    """
    rows = {name: {f"{side} {what}": [] for side in SIDES for what in ("own", "other")}
            for name in ("plain", "left matched", "both matched")}
    for number in range(count):
        rng = random.Random(f"pairs-{number}")
        kinds = rng.sample(CLASSES, 2)
        scene = random_scene(rng)
        subjects = [unseen_subject(30_000 + 2 * number + side, kind) for side, kind in enumerate(kinds)]
        pictures = [render(subject, random_pose(rng), scene) for subject in subjects]
        references = [studio.reference(picture, caption(subject, scene=scene.name), subject.kind)
                      for (picture, _), subject in zip(pictures, subjects)]
        wanted = rng.choice([name for name in SCENES if name != scene.name])
        prompts = [studio.prompt(caption(subject, scene=wanted), subject.kind) for subject in subjects]
        regions = [[[conditioning[0][0], {**conditioning[0][1], "area": (16, 16, 0, 16 * side), "strength": 1.0}]]
                   for side, (conditioning, _) in enumerate(prompts)]
        models = [studio.model]
        for side in range(2):
            mask = studio.module("dreammatcher.matching.settings").MaskSettings(references[side][1], prompts[side][1])
            models.append(studio.module("dreammatcher.host.matching.apply").apply(
                models[-1], references[side][0], mask, studio.module("dreammatcher.matching.settings").ApplySettings())[0])
        shown = [studio.sample(model, regions[0] + regions[1], studio.prompt("")[0], 900 + number, width=32) for model in models]
        palettes = [[colour for colour, _ in part_colours(*pictures[side], kinds[side]).values()] for side in range(2)]
        for values, picture in zip(rows.values(), shown):
            for side, half in enumerate((picture[:, :128], picture[:, 128:])):
                half = np.ascontiguousarray(half)
                parts = look(judge, half).parts
                values[f"{SIDES[side]} own"].append(subject_error(half, parts, *pictures[side], kinds[side]))
                values[f"{SIDES[side]} other"].append(palette_distance(half, parts, kinds[side], palettes[1 - side]))
        if folder:
            save_strip(folder, number, [picture for picture, _ in pictures] + shown)
        print(f"pairs {number + 1} of {count}", flush=True)
    columns = list(rows["plain"])
    lines = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in rows.items():
        against = lambda column: "" if name == "plain" else f" ({change(rows['plain'][column], values[column])})"  # noqa: E731, B023
        cells = [f"{mean(values[column]):.1f}{against(column)}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def change(before: list[float | None], after: list[float | None]) -> str:
    """Mean change over the cases that have both, and its standard error."""
    pairs = [b - a for a, b in zip(before, after) if a is not None and b is not None]
    return f"{np.mean(pairs):+.1f} ± {np.std(pairs, ddof=1) / len(pairs) ** 0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--pictures", action="store_true", help="strips of pictures into build/views and build/pairs")
    parser.add_argument("--only", choices=("views", "pairs"))
    options = parser.parse_args()
    studio, judge = Studio(Host(ROOT / "build" / "host")), load_judge()
    with torch.inference_mode():
        for name, study in (("views", several_views), ("pairs", two_subjects)):
            if options.only in (None, name):
                print(study(studio, judge, options.cases, ROOT / "build" / name if options.pictures else None))


if __name__ == "__main__":
    main()
