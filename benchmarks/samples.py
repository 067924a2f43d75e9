"""``make samples``: how well Toybox itself draws, without any reference. Prints the first table of docs/measured.md.

Every case is drawn from its prompt, and once more with the subject's colours named in it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch

from harness.boot import Host
from harness.library import ROOT
from toybox.draw import render
from toybox.evaluation import CLASS, COHERENCE, PURITY, SCENE, Case, cases, measured
from toybox.judge import Judge, colours_followed, load_judge, look, part_colours, purity
from toybox.shapes import PART_ROLES
from toybox.world import caption, random_pose, random_scene

from .tables import markdown, means
from .toybox_runner import ToyboxRunner, save_strip

#: by kind of Toybox: the sampler that draws best, where that is not the one of the other benchmarks
SAMPLERS = {"z": "euler_ancestral"}
RENDERS, SAMPLES = "renders through the autoencoder", "samples"
COLUMNS = {PURITY: ("purity ↑", 3), "inner": ("purity inside ↑", 3), COHERENCE: ("coherence ↓", 1),
           "parts": ("parts found ↑", 2), CLASS: ("class ↑", 2), SCENE: ("scene ↑", 2), "colours": ("named colours ↑", 2)}


def measure(judge: Judge, case: Case, picture: np.ndarray) -> dict[str, float | None]:
    seen, kind = look(judge, picture), case.subject.kind
    wanted = [part for part, role in PART_ROLES[kind].items() if role != "white"]
    return {**measured(judge, picture, case.truth()), "inner": purity(picture, seen.parts, kind, inset=1),
            "parts": len(part_colours(picture, seen.parts, kind)) / len(wanted)}


def named_colours(case: Case, picture: np.ndarray, judge) -> float | None:
    primary, secondary = case.subject.colour_names[:2]
    return colours_followed(picture, look(judge, picture).parts, case.subject.kind, {"primary": primary, "secondary": secondary})


def rendered(runner: ToyboxRunner, case: Case) -> np.ndarray:
    """The case's subject as the training pictures show it, in its wanted scene, through the autoencoder."""
    rng = random.Random(f"render-{case.seed}")
    picture, _ = render(case.subject, random_pose(rng), random_scene(rng, case.wanted_scene))
    return runner.decode(runner.encode(picture))


def run(runner: ToyboxRunner, chosen: list[Case], folder: Path | None = None) -> dict[str, dict[str, float | None]]:
    """Means over the ``chosen`` cases for renders and samples. Strips of pictures go into ``folder``."""
    judge = load_judge()
    rows: list[dict] = []
    with torch.inference_mode():
        negative = runner.prompt("")[0]
        for number, case in enumerate(chosen):
            coloured = caption(case.subject, colours=True, facing=case.facing, scene=case.wanted_scene)
            plain, named = (runner.sample(runner.model, runner.prompt(text)[0], negative, case.seed)
                            for text in (case.prompt(), coloured))
            truth = rendered(runner, case)
            for name, picture, asked in ((RENDERS, truth, truth), (SAMPLES, plain, named)):
                rows.append({"name": name, **measure(judge, case, picture), "colours": named_colours(case, asked, judge)})
            if folder:
                save_strip(folder, number, [truth, plain, named])
            print(f"case {number + 1} of {len(chosen)}", flush=True)
    return means(rows, COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--first", type=int, default=7000)
    parser.add_argument("--model", choices=("unet", "z"), default="unet", help="z: the transformer, where the host knows it")
    parser.add_argument("--cfg", type=float, help="guidance scale other than the model's own")
    parser.add_argument("--sampler", help="KSampler's sampler other than the one that draws best with the model")
    parser.add_argument("--pictures", type=Path, help="folder for a strip of pictures per case: render, sample, named colours")
    parser.add_argument("--weights", type=Path, help="a Toybox file other than the shipped one")
    options = parser.parse_args()
    runner = ToyboxRunner(Host(ROOT / "build" / "host"), options.weights, options.cfg, options.model,
                          sampler=options.sampler or SAMPLERS.get(options.model))
    print(markdown(run(runner, cases(options.cases, options.first), options.pictures), COLUMNS))


if __name__ == "__main__":
    main()
