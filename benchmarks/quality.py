"""``make quality``: DreamMatcher's effect on subject, structure and scene, on Toybox.

It is compared with the plain model and two ablations. Writes build/quality.json and reports with every picture into
build/quality, and prints the table of docs/measured.md.

The cases are those of ``python -m dreammatcher.evaluation run --protocol toybox``, drawn in this process. A finished picture is a
file: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from dreammatcher.evaluation import protocols
from dreammatcher.evaluation.report import write
from dreammatcher.evaluation.runner import Folder
from dreammatcher.evaluation.statistics import Measured, summary
from harness.boot import Host
from harness.library import ROOT
from toybox.draw import render
from toybox.evaluation import COUNT, ERROR, FIRST, HALO, PARTS, Case, cases, judged, loaded, measured, protocol
from toybox.judge import Judge, load_judge, look
from toybox.layout import recoloured
from toybox.world import random_pose, random_scene, unseen_subject

from . import edit_arms, transformer_arms
from .arms import PICTURES, PLAIN
from .arms import STUDIES as UNET_STUDIES
from .toybox_runner import Prompted, ToyboxRunner

FOLDER = ROOT / "build" / "quality"
FILE = FOLDER.with_suffix(".json")
#: an arm in the reference's colours
RECOLOURS, TIME = "{}, recoloured to the reference", "time"
RECOLOURED = RECOLOURS.format(PLAIN)
#: by kind of Toybox
STUDIES = {"unet": UNET_STUDIES, "z": transformer_arms.STUDIES, "z-edit": edit_arms.STUDIES}
#: by kind of Toybox: the arm that all others are compared with, where it is not the plain one
BASES = {"z-edit": edit_arms.IN_SEQUENCE}
NEAR = 10  # CIEDE2000: a subject error that few would object to


def bounds(chosen: list[Case], runner: ToyboxRunner) -> dict[str, float]:
    """Subject error of the same subject drawn anew (through the autoencoder), and of another subject of its class."""
    floor: list[float] = []
    ceiling: list[float] = []
    for index, case in enumerate(chosen):
        rng = random.Random(f"bounds-{index}")
        others = (case.subject, unseen_subject(20_000 + index, case.subject.kind))
        for subject, values in zip(others, (floor, ceiling)):
            picture = runner.decode(runner.encode(render(subject, random_pose(rng), random_scene(rng))[0]))
            values.append(measured(judge(), picture, case.truth())[ERROR])
    return {"floor": float(np.mean(floor)), "ceiling": float(np.mean(ceiling))}


@cache
def judge() -> Judge:
    return load_judge()


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def draw(runner: ToyboxRunner, case: Case, ready: SimpleNamespace, models: dict[str, object],
         others: dict[str, np.ndarray] | None = None, base: str = PLAIN) -> dict[str, tuple[np.ndarray, float | None]]:
    """A picture of every model with its seconds, and the pictures they are compared with.

    Those are ``others``, drawn elsewhere, and the picture of the arm ``base`` recoloured, through the autoencoder.
    """
    pictures: dict[str, tuple[np.ndarray, float | None]] = {}
    for name, model in models.items():
        given = model if isinstance(model, Prompted) else Prompted(model, ready.target, ready.negative)
        start = time.perf_counter()
        picture = runner.sample(given.model, given.positive, given.negative, case.seed)
        pictures[name] = picture, time.perf_counter() - start
    pictures.update({name: (picture, None) for name, picture in (others or {}).items()})
    plain = pictures[base][0]
    goal = recoloured(plain, look(judge(), plain).parts, ready.picture, ready.parts, case.subject.kind)
    return {**pictures, RECOLOURS.format(base): (runner.decode(runner.encode(goal)), None)}


def keep(folder: Path, case: protocols.Case, pictures: dict[str, tuple[np.ndarray, float | None]]) -> None:
    """A folder for each arm, as the evaluation's runner has them."""
    for name, (picture, seconds) in pictures.items():
        Folder(folder / name).keep(case, {"prompt": case.plain_text(), "seed": case.seed, "seconds": seconds}, png(picture))


def arms_in(folder: Path, chosen: list[protocols.Case], base: str = PLAIN) -> list[Measured]:
    """Every arm of a folder, the arm ``base`` first, with its scores and its time against that.

    The subject's error is over the cases in which every arm shows a subject, so that arms compare.
    """
    names = sorted((path.name for path in folder.iterdir() if (path / "cases").is_dir()),
                   key=lambda name: order(folder, name, base))
    plain, arms = Folder(folder / base), []
    for name in names:
        arm = Folder(folder / name)
        done = {case.key: arm.picture(case) for case in chosen if arm.done(case)}
        scores = judged(done, {case.key: plain.picture(case) for case in chosen})
        for case in chosen:
            seconds, usual = (each.described(case).get("seconds") for each in (arm, plain))
            if case.key in scores and seconds and usual:
                scores[case.key][TIME] = seconds / usual
        arms.append(Measured(name, scores, {case.key: case.subject.name for case in chosen}, done,
                             {ERROR: "CIEDE2000, by Toybox's judge"}))
    shared = {case.key for case in chosen if all(ERROR in arm.scores.get(case.key, {}) for arm in arms)}
    return [replace(arm, scores={key: {metric: value for metric, value in row.items() if metric != ERROR or key in shared}
                                 for key, row in arm.scores.items()}) for arm in arms]


def extremes(arm: Measured, plain: Measured, folder: Path, count: int = 10) -> str:
    """The ``count`` worst and best pictures of an arm by the subject's error, and the median one.

    A mean hides pictures that an artist would throw away. They are saved as one sheet, worst first: reference, plain, the arm's;
    the median one once more by itself.
    """
    ranked = sorted((key for key, row in arm.scores.items() if ERROR in row), key=lambda key: -arm.scores[key][ERROR])
    if not ranked:
        return f"{arm.name}: no picture shows a subject"
    median = ranked[len(ranked) // 2]
    shown = list(dict.fromkeys((*ranked[:count], median, *ranked[-count:])))
    rows = {key: np.concatenate([loaded(path) for path in (folder / "references" / arm.subjects[key] / "00.png",
                                                           plain.pictures[key], arm.pictures[key])], 1) for key in shown}
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(rows.values()))).save(report / f"extremes of {arm.name}.png")
    Image.fromarray(rows[median]).save(report / f"median of {arm.name}.png")
    told = ", ".join(f"{key} {arm.scores[key][ERROR]:.1f}" for key in shown)
    return f"{arm.name}, worst to best with the median between: {told}"


def spread(arm: Measured, plain: Measured) -> str:
    """Medians of an arm, and how many of its pictures are near the subject or further from it than the plain one."""
    errors = {key: row[ERROR] for key, row in arm.scores.items() if ERROR in row}
    median = {metric: float(np.median([row[metric] for row in arm.scores.values() if metric in row] or [np.nan]))
              for metric in (ERROR, PARTS, HALO)}
    worse = [errors[key] - plain.scores[key][ERROR] for key in errors if ERROR in plain.scores.get(key, {})]
    worse = sorted((each for each in worse if each > 0), reverse=True)
    halos = sorted((row[HALO] for row in arm.scores.values() if HALO in row), reverse=True)[:4]
    return (f"{arm.name}, medians: subject error {median[ERROR]:.1f}, part IoU {median[PARTS]:.2f}, halo {median[HALO]:.1%}; "
            f"{sum(each <= NEAR for each in errors.values())} of {len(errors)} have {NEAR} or less; worse than plain by "
            f"{', '.join(f'{each:.1f}' for each in worse) or 'nothing'}; largest halos "
            f"{', '.join(f'{each:.1%}' for each in halos)}")


def order(folder: Path, name: str, base: str) -> tuple:
    """The arm ``base`` first, then as the arms were made."""
    made = min(path.stat().st_mtime_ns for path in (folder / name / "cases").iterdir())
    return name != base, name == RECOLOURS.format(base), made


def run(runner: ToyboxRunner, study: str, count: int, first: int, folder: Path, seeds: int = 0) -> list[Measured]:
    """The arms of a study over ``count`` cases, whose pictures are kept in ``folder``."""
    chosen, base = list(protocol(folder / "references", count, first, seeds).cases()), BASES.get(runner.kind, PLAIN)
    with torch.inference_mode():
        for number, (case, facts) in enumerate(zip(chosen, cases(count, first, seeds))):
            if not Folder(folder / RECOLOURS.format(base)).done(case):
                ready = edit_arms.prepare(runner, facts) if runner.kind == "z-edit" else \
                    runner.ahead(runner.prepare(facts), both_rows=True)
                extra = PICTURES[study](runner, ready, facts) if study in PICTURES else {}
                keep(folder, case, draw(runner, facts, ready, STUDIES[runner.kind][study](runner, ready), extra, base))
            print(f"case {number + 1} of {count}", flush=True)
    return arms_in(folder, chosen, base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=COUNT)
    parser.add_argument("--first", type=int, default=FIRST, help="the defaults were chosen on cases 0 to 39")
    parser.add_argument("--seeds", type=int, default=0, help="0, 1, 2 ...: other noise for the same subjects and scenes")
    parser.add_argument("--study", choices=sorted({name for studies in STUDIES.values() for name in studies}), default="arms",
                        help="'arms' of the UNet writes build/quality.json, others only reports")
    parser.add_argument("--model", choices=list(STUDIES), default="unet",
                        help="on hosts that know Z-Image: z, the transformer; z-edit, the edit model made of it (--weights)")
    parser.add_argument("--steps", type=int, help="steps of the sampler other than the model's own")
    parser.add_argument("--sampler", help="KSampler's sampler other than the model's own")
    parser.add_argument("--weights", type=Path, help="a Toybox file other than the shipped one")
    options = parser.parse_args()
    if options.model == "z-edit" and not options.weights:
        parser.error("--weights: they are not shipped; name the file that `python -m toybox.making.train_edit` wrote")
    if options.study not in STUDIES[options.model]:
        parser.error(f"--study: {options.study!r} is none of {options.model}'s: {', '.join(STUDIES[options.model])}")
    runner = ToyboxRunner(Host(ROOT / "build" / "host"), options.weights, kind=options.model, steps=options.steps,
                          sampler=options.sampler)
    apart = (options.model if options.model != "unet" else "", options.study, options.weights and options.weights.stem,
             options.steps and f"{options.steps} steps", options.sampler, options.seeds and f"seeds {options.seeds}")
    folder = FOLDER / ", ".join(filter(None, apart))
    arms = run(runner, options.study, options.cases, options.first, folder, options.seeds)
    if options.study == "arms" and options.model == "unet":
        with torch.inference_mode():
            limits = bounds(cases(options.cases, options.first), runner)
        means = {arm.name: {metric: arm.estimate(metric).mean for metric in arm.metrics()} for arm in arms}
        FILE.write_text(json.dumps({**means, "bounds": limits}, indent=1) + "\n", encoding="utf-8")
        print(f"bounds of subject error: same subject {limits['floor']:.1f}, another subject {limits['ceiling']:.1f}")
    told = summary(arms, (ERROR,))
    write(told, folder / "report")
    for arm in arms:
        print(extremes(arm, arms[0], folder), spread(arm, arms[0]), sep="\n")
    print(told.markdown())


if __name__ == "__main__":
    main()
