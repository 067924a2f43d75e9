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
from toybox.judge import Verdict, coherence, load_judge, look, purity, subject_error
from toybox.layout import background_change, edge_overlap, recoloured, silhouette_iou, structure_iou
from toybox.world import random_pose, random_scene, unseen_subject

from .arms import PICTURES, PLAIN, STUDIES
from .studio import Case, Studio, cases, save_strip

FILE = ROOT / "build" / "quality.json"
RECOLOURED = "plain, recoloured to the reference"
#: measure -> (column, decimals); means over the cases in which it can be taken
COLUMNS = {
    "structure_iou": ("part IoU ↑", 2), "silhouette_iou": ("silhouette IoU ↑", 2), "edges": ("edges ↑", 2),
    "background": ("background change ↓", 1), "purity": ("purity ↑", 2), "coherence": ("coherence ↓", 1),
    "scene_accuracy": ("scene ↑", 2), "class_accuracy": ("class ↑", 2),
}


def measure(case: Case, ready: SimpleNamespace, picture: np.ndarray, seen: Verdict, plain: np.ndarray,
            plain_seen: Verdict) -> dict[str, float | None]:
    kind = case.subject.kind
    return {
        "subject_error": subject_error(picture, seen.parts, ready.picture, ready.parts, kind),
        "structure_iou": structure_iou(seen.parts, plain_seen.parts),
        "silhouette_iou": silhouette_iou(seen.parts, plain_seen.parts),
        "edges": edge_overlap(picture, plain),
        "background": background_change(picture, seen.parts, plain, plain_seen.parts),
        "purity": purity(picture, seen.parts, kind),
        "coherence": coherence(picture, seen.parts, kind),
        "scene_accuracy": float(seen.scene == case.wanted_scene),
        "class_accuracy": float(seen.kind == kind),
    }


def mean_of(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


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
    return {"floor": mean_of(floor), "ceiling": mean_of(ceiling)}


def summarise(rows: list[dict[str, dict]]) -> dict[str, dict[str, float]]:
    """Means per arm. ``subject_error`` is over the cases in which every arm shows a subject, so that arms compare.

    ``gain`` is its mean difference from plain, case by case, and ``gain_se`` the standard error of that.
    """
    names = list(rows[0])
    comparable = [row for row in rows if all(row[name]["subject_error"] is not None for name in names)]
    if not comparable:
        raise ValueError(f"none of {len(rows)} cases shows its subject in every arm; measure more cases")
    table = {}
    for name in names:
        table[name] = {key: mean_of([row[name][key] for row in rows]) for key in COLUMNS}
        errors = np.array([row[name]["subject_error"] for row in comparable])
        gains = errors - [row[PLAIN]["subject_error"] for row in comparable]
        times = [row[name]["time"] for row in rows]
        table[name].update(
            subject_error=float(errors.mean()), gain=float(gains.mean()),
            gain_se=float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else 0.0,
            time=None if None in times else float(np.median(times)), n=len(rows), n_subject=len(comparable))
    return table


def markdown(table: dict[str, dict[str, float]]) -> str:
    titles = ["arm", "subject error ↓", "against plain", *(title for title, _ in COLUMNS.values()), "time"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for name, row in table.items():
        gain = f"{100 * row['gain'] / table[PLAIN]['subject_error']:+.0f}% ({row['gain']:+.1f} ± {row['gain_se']:.1f})"
        values = [f"{row['subject_error']:.1f}", "" if name == PLAIN else gain,
                  *(shown(row[key], digits) for key, (_, digits) in COLUMNS.items()), shown(row["time"], 2)]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def draw(studio: Studio, judge, case: Case, ready: SimpleNamespace, models: dict[str, object],
         others: dict[str, np.ndarray] | None = None) -> tuple[dict, dict]:
    """A picture of every model and what they measure, and pictures that were made elsewhere (``others``).

    Beside them the plain picture recoloured, through the autoencoder.
    """
    pictures, seconds = {}, {}
    for name, model in models.items():
        start = time.perf_counter()
        pictures[name] = studio.sample(model, ready.target, ready.negative, case.seed)
        seconds[name] = time.perf_counter() - start
    pictures.update(others or {})
    plain = pictures[PLAIN], look(judge, pictures[PLAIN])
    goal = recoloured(plain[0], plain[1].parts, ready.picture, ready.parts, case.subject.kind)
    pictures[RECOLOURED] = studio.decode(studio.encode(goal))
    row = {}
    for name, picture in pictures.items():
        row[name] = measure(case, ready, picture, look(judge, picture), *plain)
        row[name]["time"] = seconds[name] / seconds[PLAIN] if name in seconds else None
    return pictures, row


def run(study: str, count: int, folder: Path | None = None, first: int = 0,
        weights: Path | None = None) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Table of a study over ``count`` cases, and the bounds of subject error. Strips of pictures go into ``folder``.

    ``weights``: another Toybox file than the shipped one.
    """
    studio, judge = Studio(Host(ROOT / "build" / "host"), weights), load_judge()
    chosen, rows = cases(count, first), []
    with torch.inference_mode():
        limits = bounds(judge, chosen, studio)
        for number, case in enumerate(chosen):
            ready = studio.ahead(studio.prepare(case), both_rows=True)
            extra = PICTURES[study](studio, ready, case) if study in PICTURES else {}
            pictures, row = draw(studio, judge, case, ready, STUDIES[study](studio, ready), extra)
            rows.append(row)
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
    parser.add_argument("--weights", type=Path, help="a Toybox file other than the shipped one")
    options = parser.parse_args()
    table, limits = run(options.study, options.cases, options.pictures, options.first, options.weights)
    if options.study == "arms":
        FILE.write_text(json.dumps({**table, "bounds": limits}, indent=1) + "\n", encoding="utf-8")
    print(markdown(table))
    print(f"bounds of subject error: same subject {limits['floor']:.1f}, another subject {limits['ceiling']:.1f}")


if __name__ == "__main__":
    main()
