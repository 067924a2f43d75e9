"""``make learn``: Toybox learns subjects that it never saw, by every method, alone and with DreamMatcher on top.

Writes build/learn.json and a sheet of pictures, and prints a table of all subjects that are done. Four pictures of each subject
are learned from; prompts are of other scenes, poses and seeds. What is done is kept, so a stopped run goes on, and several
processes share the work: ``--first 4 --subjects 2`` teaches two of the ten subjects.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save

from harness.boot import Host
from harness.library import ROOT
from toybox.evaluation import CLASS, DRIFT, ERROR, SCENE, SILHOUETTE, Truth, drift, measured
from toybox.judge import look
from toybox.world import SCENES, caption

from .method_runner import WORD, MethodRunner, SubjectCase, Taught, ablations, methods, subject_cases
from .tables import compared, markdown, mean_of, means

FILE, FOLDER = ROOT / "build" / "learn.json", ROOT / "build" / "learn"
PLAIN, MATCHED, GUIDED = "plain", " + DreamMatcher", " + DreamMatcher and guidance"
#: measure -> (column, decimals)
COLUMNS = {"subject_error": ("subject error ↓", 1), "silhouette_iou": ("silhouette IoU ↑", 2), "scene": ("scene ↑", 2),
           "class": ("class ↑", 2), "drift": ("distance of the class from the subject ↑", 1), "seconds": ("seconds", 0),
           "parameters": ("parameters", 0), "bytes": ("file, KB", 0)}
#: what a picture is measured by -> its column
MEASURES = {ERROR: "subject_error", SILHOUETTE: "silhouette_iou", SCENE: "scene", CLASS: "class"}


def reference_of(runner: MethodRunner, taught: Taught, case: SubjectCase):
    """The first of the learned pictures, inverted with a prompt that names it, and the subject in that prompt."""
    toybox = runner.runner
    prompt = f"a photo of a {WORD} {case.subject.kind} {SCENES[case.scenes[0]]}"
    conditioning = toybox.module("dreammatcher.host.text.conditioning")
    subject = conditioning.subject_of(toybox.clip, prompt, case.subject.kind)
    (tensor, options), = taught.encode(prompt)
    reference, _ = toybox.module("dreammatcher.host.matching.invert").invert_reference(
        taught.model, toybox.encode(case.pictures[0]), [[tensor, {**options, conditioning.SUBJECT_KEY: subject}]],
        toybox.prompt("")[0], 50, "ddim_uniform")
    return reference, subject


def matched(runner: MethodRunner, taught: Taught, case: SubjectCase, reference, prompt: str, guided: bool):
    """The model with DreamMatcher on top, for what :func:`reference_of` gave."""
    toybox = runner.runner
    inverted, subject = reference
    wanted = toybox.module("dreammatcher.host.text.conditioning").subject_of(toybox.clip, prompt, case.subject.kind)
    settings = toybox.module("dreammatcher.matching.settings")
    model = toybox.module("dreammatcher.host.matching.apply").apply(
        taught.model, inverted, settings.MaskSettings(subject, wanted), settings.ApplySettings())[0]
    return toybox.guided(model, mode="fast") if guided else model


class Drawing:
    """Pictures of one case, and figures of them."""

    def __init__(self, runner: MethodRunner, case: SubjectCase):
        self.runner, self.case, self.kind = runner, case, case.subject.kind
        self.toybox, self.judge, self.negative = runner.runner, runner.judge, runner.runner.prompt("")[0]
        self.rows: list[dict] = []
        self.strip: list[np.ndarray] = []

    def named(self, text: str) -> str:
        return text.replace(f"a {self.kind}", f"a {WORD} {self.kind}", 1)

    def plain(self, text: str, seed: int) -> np.ndarray:
        return self.toybox.sample(self.toybox.model, self.toybox.prompt(text)[0], self.negative, seed)

    def alone(self, taught: Taught, text: str, seed: int) -> np.ndarray:
        return self.toybox.sample(taught.model, taught.encode(self.named(text)), self.negative, seed)

    def with_match(self, taught: Taught, reference, guided: bool, text: str, seed: int) -> np.ndarray:
        model = matched(self.runner, taught, self.case, reference, self.named(text), guided)
        return self.toybox.sample(model, taught.encode(self.named(text)), self.negative, seed)

    def figures(self, name: str, draw: Callable[[str, int], np.ndarray], against: list[np.ndarray] | None = None,
                **more) -> list[np.ndarray]:
        """Adds a row of means over the case's pictures; their layout is compared with ``against``."""
        pictures, measures, case = [], [], self.case
        for place, (scene, facing, seed) in enumerate(case.wanted):
            picture = draw(caption(case.subject, facing=facing, scene=scene), seed)
            other = (against[place], look(self.judge, against[place])) if against else None
            measures.append(measured(self.judge, picture, self.truth(scene), other))
            pictures.append(picture)
        means = {key: mean_of(one.get(measure) for one in measures) for measure, key in MEASURES.items()}
        self.rows.append({"name": name, **means, **more})
        self.strip.append(pictures[0])
        return pictures

    def drift(self, model, encode: Callable[[str], list]) -> float | None:
        """The distance of pictures of the class alone from the subject's colours."""
        pictures = [self.toybox.sample(model, encode(f"a photo of a {self.kind}"), self.negative, seed) for seed in (901, 902)]
        return mean_of(drift(self.judge, one, self.truth(self.case.scenes[0])).get(DRIFT) for one in pictures)

    def truth(self, scene: str) -> Truth:
        return Truth(self.case.pictures[0], self.case.parts[0], self.kind, scene)

    def teach(self, name: str) -> None:
        """Adds the rows of one method: alone, and with DreamMatcher on top."""
        learn = {**methods(self.runner), **ablations(self.runner)}[name]
        prior = self.runner.prior(self.kind)
        begun = time.perf_counter()
        taught = learn(self.case, prior)
        seconds, numbers = time.perf_counter() - begun, taught.numbers()
        if name in ablations(self.runner):
            self.figures(name, partial(self.alone, taught))
            return
        alone = self.figures(name, partial(self.alone, taught), drift=self.drift(taught.model, taught.encode), seconds=seconds,
                             parameters=sum(value.numel() for value in numbers.values()), bytes=len(save(numbers)) / 1000)
        reference = reference_of(self.runner, taught, self.case)
        for ending, guided in ((MATCHED, False), (GUIDED, True)):
            self.figures(name + ending, partial(self.with_match, taught, reference, guided), alone)


def names_of(runner: MethodRunner) -> list[str]:
    return [PLAIN, *methods(runner), *ablations(runner)]


def done(folder: Path, number: int, name: str) -> Path:
    """The file of one subject by one method, beside a strip of its pictures."""
    return folder / f"{number:03} {name}.json"


def teach(runner: MethodRunner, case: SubjectCase, folder: Path, number: int, name: str) -> None:
    """Makes and keeps what :func:`done` names."""
    drawing = Drawing(runner, case)
    if name == PLAIN:
        drawing.strip.append(case.pictures[0])
        drawing.figures(PLAIN, drawing.plain,
                        drift=drawing.drift(runner.runner.model, lambda text: runner.runner.prompt(text)[0]))
    else:
        drawing.teach(name)
    file = done(folder, number, name)
    Image.fromarray(np.concatenate(drawing.strip, 1)).save(file.with_suffix(".png"))
    file.write_text(json.dumps(drawing.rows), encoding="utf-8")


def sheet(folder: Path, numbers: list[int], names: list[str], columns: list[str]) -> Image.Image:
    """A row of pictures for each subject under the names of their columns."""
    strips = [np.concatenate([np.array(Image.open(done(folder, number, name).with_suffix(".png"))) for name in names], 1)
              for number in numbers]
    font, head, side = ImageFont.load_default(13), 150, strips[0].shape[0]
    page = Image.new("RGB", (strips[0].shape[1], head + side * len(strips)), "white")
    for row, one in enumerate(strips):
        page.paste(Image.fromarray(one), (0, head + side * row))
    for column, name in enumerate(["learned from", *columns]):
        label = Image.new("RGB", (head, side), "white")
        lines = name.replace(" + ", "\n+ ").replace(" and ", "\nand ").replace(" without", "\nwithout")
        ImageDraw.Draw(label).multiline_text((4, 4), lines, "black", font)
        page.paste(label.rotate(90, expand=True), (side * column, 0))
    return page


def folder_of(prompts: int, steps: float) -> Path:
    """The folder that keeps the subjects: a different one for other weights, subject cases and choices."""
    files = [Path(__file__).with_name("method_runner.py"), ROOT / "toybox" / "model.safetensors"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files) + f"{prompts} {steps}".encode())
    return FOLDER / digest.hexdigest()[:8]


def rows_of(folder: Path, names: list[str]) -> list[dict]:
    """Figures of every subject that all methods have learned."""
    numbers = sorted({int(path.name[:3]) for path in folder.glob("*.json")})
    numbers = [number for number in numbers if all(done(folder, number, name).exists() for name in names)]
    if not numbers:
        raise SystemExit(f"{folder} holds no subject that every method has learned")
    return [{**row, "subject": number} for number in numbers for name in names
            for row in json.loads(done(folder, number, name).read_text(encoding="utf-8"))]


def merged(folder: Path, names: list[str], most: int = 6) -> dict[str, dict]:
    """The table of these subjects; writes it, and a sheet of ``most`` of them."""
    rows = rows_of(folder, names)
    numbers, table = list(dict.fromkeys(row["subject"] for row in rows)), means(rows, COLUMNS)
    FILE.write_text(json.dumps({"subjects": numbers, **table}, indent=1), encoding="utf-8")
    sheet(folder, numbers[:most], names, list(table)).save(FILE.with_suffix(".png"))
    return table


def run(runner: MethodRunner, subjects: int, prompts: int, first: int, folder: Path) -> None:
    """Teaches some subjects by every method. What was made before is not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for number, case in enumerate(subject_cases(subjects, prompts, first), first):
            for name in names_of(runner):
                if not done(folder, number, name).exists():
                    teach(runner, case, folder, number, name)
                    print(f"subject {number}: {name} is done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=float, default=1.0, help="share of each method's steps")
    options = parser.parse_args()
    runner = MethodRunner(Host(ROOT / "build" / f"host-learn-{options.first}"), options.steps)
    folder = folder_of(options.prompts, options.steps)
    run(runner, options.subjects, options.prompts, options.first, folder)
    names = names_of(runner)
    print(markdown(merged(folder, names), COLUMNS, "method"))
    pairs = [(name, name + more) for name in methods(runner) for more in (MATCHED, GUIDED)]
    pairs += [("Textual Inversion", "ViCo"), *(("ViCo", name) for name in ablations(runner))]
    print(compared(rows_of(folder, names), "subject_error", pairs))


if __name__ == "__main__":
    main()
