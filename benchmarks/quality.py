"""``make quality``: what DreamMatcher does to subject, structure and scene, on Toybox, against the plain model and two
ablations. Writes build/quality.json and prints the table of docs/measured.md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from harness.boot import Host
from harness.library import ROOT
from toybox.draw import render
from toybox.judge import Verdict, load_judge, look, structure_iou, subject_error
from toybox.world import random_pose, random_scene, unseen_subject

from .studio import Case, Studio, cases, save_strip

FILE = ROOT / "build" / "quality.json"
PLAIN, REPLACED, MATCHED, EVERYWHERE = "plain", "K+V replacement", "DreamMatcher", "DreamMatcher without mask"


def arms(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    settings = studio.module("dreammatcher.settings")
    return {
        PLAIN: studio.model,
        REPLACED: studio.matched(ready, injection=settings.REPLACED),
        MATCHED: studio.matched(ready),
        EVERYWHERE: studio.matched(ready, injection=settings.MATCHED_EVERYWHERE),
    }


def ablations(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """Choices that the specification leaves open."""
    inside = torch.from_numpy(ready.parts > 0).float()[None, None]
    return {
        PLAIN: studio.model,
        MATCHED: studio.matched(ready),
        "reference mask limits the match": studio.matched(ready, {"reference_mask": inside}),
        "soft foreground": studio.matched(ready, {"otsu": False}),
        "no slack beyond the paper's": studio.matched(ready, effort={"least_slack": 0.0}),
        "as the paper divides the work": studio.matched(ready, effort={"pca": 256, "shared": False}),
        "everything as in the paper": studio.matched(
            ready, {"otsu": False}, effort={"pca": 256, "shared": False, "least_slack": 0.0}),
        "start 0.3": studio.matched(ready, start=0.3),
    }


def guidances(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """Matching alone, and led further in both modes."""
    matched = studio.matched(ready)
    return {
        PLAIN: studio.model,
        MATCHED: matched,
        "+ guidance fast 0.5": studio.guided(matched, mode="fast", weight=0.5),
        "+ guidance fast": studio.guided(matched, mode="fast"),
        "+ guidance paper": studio.guided(matched, mode="paper"),
    }


def trades(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """Everything that trades likeness for time or memory, one change from the default each."""
    small = studio.ahead(ready, dtype=torch.float16, pca=64, noise_levels=20)
    coarse, fine = studio.blocks()
    return {
        PLAIN: studio.model,
        "balanced": studio.matched(ready),
        "paper": studio.matched(ready, effort={"pca": 256, "shared": False}),
        "PCA 64": studio.matched(ready, effort={"pca": 64}),
        "match every 2": studio.matched(ready, effort={"every": 2}),
        "match every 4": studio.matched(ready, effort={"every": 4}),
        "coarse level only": studio.matched(ready, layers=coarse),
        "fine level only": studio.matched(ready, layers=fine),
        "small store": studio.matched(small),
        "start 0.3": studio.matched(ready, start=0.3),
        "end 0.7": studio.matched(ready, end=0.7),
        "guidance fast": studio.guided(studio.matched(ready), mode="fast"),
    }


def starts(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """When matching begins, alone and led by guidance."""
    later = {f"start {start}": studio.matched(ready, start=start) for start in (0.2, 0.3, 0.4)}
    return {
        PLAIN: studio.model,
        MATCHED: studio.matched(ready),
        **later,
        "+ guidance fast": studio.guided(studio.matched(ready), mode="fast"),
        "start 0.3, + guidance fast": studio.guided(later["start 0.3"], mode="fast"),
    }


def unnamed(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """The subject named, and taken from the prompts."""
    return {
        PLAIN: studio.model,
        MATCHED: studio.matched(ready),
        "words that both prompts share": studio.matched(ready, studio.named(ready, shared=True)),
        "all content words": studio.matched(ready, studio.named(ready, shared=False)),
    }


STUDIES = {"arms": arms, "ablations": ablations, "guidance": guidances, "trades": trades, "starts": starts, "unnamed": unnamed}


def measure(case: Case, ready: SimpleNamespace, picture: np.ndarray, seen: Verdict, plain: Verdict) -> dict[str, float | None]:
    return {
        "subject_error": subject_error(picture, seen.parts, ready.picture, ready.parts, case.subject.kind),
        "structure_iou": structure_iou(seen.parts, plain.parts),
        "scene_accuracy": float(seen.scene == case.wanted_scene),
        "class_accuracy": float(seen.kind == case.subject.kind),
    }


def bounds(judge, chosen: list[Case], studio: Studio) -> dict[str, float]:
    """Subject error of the same subject drawn anew (through the autoencoder), and of another subject of its class."""
    floor, ceiling = [], []
    for index, case in enumerate(chosen):
        reference, parts = case.reference()
        rng = random.Random(f"bounds-{index}")
        others = (case.subject, unseen_subject(20_000 + index, case.subject.kind))
        for subject, values in zip(others, (floor, ceiling)):
            picture = studio.decode(studio.encode(render(subject, random_pose(rng), random_scene(rng))[0]))
            values.append(subject_error(picture, look(judge, picture).parts, reference, parts, case.subject.kind))
    mean = lambda values: float(np.mean([value for value in values if value is not None]))  # noqa: E731
    return {"floor": mean(floor), "ceiling": mean(ceiling)}


def summarise(rows: list[dict[str, dict]]) -> dict[str, dict[str, float]]:
    """Means per arm. ``subject_error`` is over the cases in which every arm shows a subject, so that arms compare."""
    names = list(rows[0])
    comparable = [row for row in rows if all(row[name]["subject_error"] is not None for name in names)]
    table = {}
    for name in names:
        table[name] = {key: round(float(np.mean([row[name][key] for row in rows if row[name][key] is not None])), 3)
                       for key in ("structure_iou", "scene_accuracy", "class_accuracy")}
        table[name]["subject_error"] = round(float(np.mean([row[name]["subject_error"] for row in comparable])), 2)
        table[name]["time"] = round(float(np.median([row[name].get("time", 1.0) for row in rows])), 2)
        table[name]["n"] = len(rows)
        table[name]["n_subject"] = len(comparable)
    return table


def markdown(table: dict[str, dict[str, float]]) -> str:
    plain = table[PLAIN]["subject_error"]
    lines = ["| arm | subject error ↓ | against plain | structure IoU ↑ | scene accuracy ↑ | class accuracy ↑ | time |",
             "|---|---|---|---|---|---|---|"]
    lines += [f"| {name} | {row['subject_error']:.1f} | {100 * (row['subject_error'] / plain - 1):+.0f}% | "
              f"{row['structure_iou']:.2f} | {row['scene_accuracy']:.2f} | {row['class_accuracy']:.2f} | {row['time']:.2f} |"
              for name, row in table.items()]
    return "\n".join(lines)


def run(study: str, count: int, folder: Path | None = None,
        first: int = 0) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Table of a study over ``count`` cases, and the bounds of subject error. Strips of pictures go into ``folder``."""
    studio, judge = Studio(Host(ROOT / "build" / "host")), load_judge()
    chosen, rows = cases(count, first), []
    with torch.inference_mode():
        limits = bounds(judge, chosen, studio)
        for number, case in enumerate(chosen):
            ready = studio.ahead(studio.prepare(case), both_rows=True)
            pictures, seconds = {}, {}
            for name, model in STUDIES[study](studio, ready).items():
                start = time.perf_counter()
                pictures[name] = studio.sample(model, ready.target, ready.negative, case.seed)
                seconds[name] = time.perf_counter() - start
            seen = {name: look(judge, picture) for name, picture in pictures.items()}
            rows.append({name: {**measure(case, ready, pictures[name], seen[name], seen[PLAIN]),
                                "time": seconds[name] / seconds[PLAIN]} for name in pictures})
            if folder:
                save_strip(folder, number, [ready.picture, *pictures.values()])
            print(f"case {number + 1} of {len(chosen)}", flush=True)
    return summarise(rows), limits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the defaults were chosen on cases 0 to 39")
    parser.add_argument("--pictures", type=Path, help="folder for a strip of pictures per case")
    parser.add_argument("--study", choices=STUDIES, default="arms", help="'arms' writes build/quality.json, others only print")
    options = parser.parse_args()
    table, limits = run(options.study, options.cases, options.pictures, options.first)
    if options.study == "arms":
        FILE.write_text(json.dumps({**table, "bounds": limits}, indent=1) + "\n", encoding="utf-8")
    print(markdown(table))
    print(f"bounds of subject error: same subject {limits['floor']:.1f}, another subject {limits['ceiling']:.1f}")


if __name__ == "__main__":
    main()
