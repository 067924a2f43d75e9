"""``make learn-sefi``: Toybox learns subjects from one picture each by SeFi-IDE, part by part.

``--weights`` sweeps the weight of the attention loss instead, on other subjects. Everything is alone, without DreamMatcher.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import numpy as np
import torch

from harness.boot import Host
from harness.library import ROOT

from .learn import Drawing
from .school import Lesson, School, Taught, lessons
from .tables import markdown, means

FILE = ROOT / "build" / "sefi.json"
WORD, STEPS, RATE, BATCH, WEIGHT = "sks", 300, 3e-2, 4, 3.0
WEIGHTS = (0.0, 0.3, 3.0, 30.0, 300.0)
COLUMNS = {"subject_error": ("subject error ↓", 1), "silhouette_iou": ("silhouette IoU with plain ↑", 2), "scene": ("scene ↑", 2),
           "class": ("class ↑", 2)}
#: row -> what is chosen
ROWS = {"Textual Inversion": dict(stages=1, split=False, weight=0.0),
        "Textual Inversion + attention loss": dict(stages=1, split=False, weight=WEIGHT),
        "five stages": dict(stages=5, split=False, weight=0.0), "keys and values apart": dict(stages=1, split=True, weight=0.0),
        "both": dict(stages=5, split=True, weight=0.0), "both + attention loss": dict(stages=5, split=True, weight=WEIGHT)}


def teach(school: School, lesson: Lesson, stages: int, split: bool, weight: float, steps: int) -> Taught:
    """SeFi-IDE on the first of the lesson's pictures."""
    nodes, studio, kind = school.nodes, school.studio, lesson.subject.kind
    image = torch.from_numpy(lesson.pictures[0].copy()).float()[None] / 255
    sefi = nodes["DreamMatcherSeFiTrain"]().learn(
        studio.model, studio.clip, studio.vae, image, WORD, kind, f"a photo of a {kind}", 128, steps, RATE, weight, 0, stages,
        split, "table", False, BATCH)[0]
    model = nodes["DreamMatcherSeFiApply"]().apply(studio.model, sefi)[0]

    def encode(prompt: str) -> list:
        if WORD not in prompt.split():
            return studio.prompt(prompt)[0]
        return nodes["DreamMatcherSeFiPrompt"]().encode(studio.clip, prompt, sefi)[0]
    return Taught(model, sefi, encode)


def draw(drawing: Drawing, taught: Taught, text: str, seed: int) -> np.ndarray:
    """A picture of a prompt, the word in place of the class."""
    prompt = text.replace(f"a {drawing.kind}", f"a {WORD}", 1)
    return drawing.studio.sample(taught.model, taught.encode(prompt), drawing.negative, seed)


def measured(school: School, chosen: list[Lesson], rows: dict[str, dict], steps: int) -> dict[str, dict[str, float]]:
    """Means of each row over the lessons, the plain model's first."""
    found: list[dict] = []
    for number, lesson in enumerate(chosen):
        drawing = Drawing(school, lesson)
        plain = drawing.figures("plain", drawing.plain)
        for name, choice in rows.items():
            taught = teach(school, lesson, steps=steps, **choice)
            drawing.figures(name, partial(draw, drawing, taught), plain)
            print(f"subject {number}: {name}: {drawing.rows[-1]['subject_error']:.1f}", flush=True)
        found += drawing.rows
    return means(found, COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--weights", action="store_true", help="sweep the attention loss's weight instead, on other subjects")
    options = parser.parse_args()
    school = School(Host(ROOT / "build" / "host-sefi"))
    rows = ROWS if not options.weights else {f"weight {one:g}": dict(stages=5, split=True, weight=one) for one in WEIGHTS}
    with torch.inference_mode():
        chosen = lessons(options.subjects, options.prompts, 300 if options.weights else 200)
        table = measured(school, chosen, rows, options.steps)
    key = "weights" if options.weights else "rows"
    before = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    FILE.write_text(json.dumps({**before, key: table}, indent=1), encoding="utf-8")
    print(markdown(table, COLUMNS))


if __name__ == "__main__":
    main()
