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

from .school import WORD, Lesson, School, Taught, ablations, lessons, methods
from .tables import compared, markdown, mean_of, means

FILE, FOLDER = ROOT / "build" / "learn.json", ROOT / "build" / "learn"
PLAIN, MATCHED, GUIDED = "plain", " + DreamMatcher", " + DreamMatcher and guidance"
#: measure -> (column, decimals)
COLUMNS = {"subject_error": ("subject error ↓", 1), "silhouette_iou": ("silhouette IoU ↑", 2), "scene": ("scene ↑", 2),
           "class": ("class ↑", 2), "drift": ("distance of the class from the subject ↑", 1), "seconds": ("seconds", 0),
           "parameters": ("parameters", 0), "bytes": ("file, KB", 0)}
#: what a picture is measured by -> its column
MEASURES = {ERROR: "subject_error", SILHOUETTE: "silhouette_iou", SCENE: "scene", CLASS: "class"}


def reference_of(school: School, taught: Taught, lesson: Lesson):
    """The first of the learned pictures, inverted with a prompt that names it, and the subject in that prompt."""
    studio = school.studio
    prompt = f"a photo of a {WORD} {lesson.subject.kind} {SCENES[lesson.scenes[0]]}"
    conditioning = studio.module("dreammatcher.host.conditioning")
    subject = conditioning.subject_of(studio.clip, prompt, lesson.subject.kind)
    (tensor, options), = taught.encode(prompt)
    reference, _ = studio.module("dreammatcher.host.matching.invert").invert_reference(
        taught.model, studio.encode(lesson.pictures[0]), [[tensor, {**options, conditioning.SUBJECT_KEY: subject}]],
        studio.prompt("")[0], 50, "ddim_uniform")
    return reference, subject


def matched(school: School, taught: Taught, lesson: Lesson, reference, prompt: str, guided: bool):
    """The model with DreamMatcher on top, for what :func:`reference_of` gave."""
    studio = school.studio
    inverted, subject = reference
    wanted = studio.module("dreammatcher.host.conditioning").subject_of(studio.clip, prompt, lesson.subject.kind)
    settings = studio.module("dreammatcher.matching.settings")
    model = studio.module("dreammatcher.host.matching.apply").apply(
        taught.model, inverted, settings.MaskSettings(subject, wanted), settings.ApplySettings())[0]
    return studio.guided(model, mode="fast") if guided else model


class Drawing:
    """Pictures of one lesson, and figures of them."""

    def __init__(self, school: School, lesson: Lesson):
        self.school, self.lesson, self.kind = school, lesson, lesson.subject.kind
        self.studio, self.judge, self.negative = school.studio, school.judge, school.studio.prompt("")[0]
        self.rows: list[dict] = []
        self.strip: list[np.ndarray] = []

    def named(self, text: str) -> str:
        return text.replace(f"a {self.kind}", f"a {WORD} {self.kind}", 1)

    def plain(self, text: str, seed: int) -> np.ndarray:
        return self.studio.sample(self.studio.model, self.studio.prompt(text)[0], self.negative, seed)

    def alone(self, taught: Taught, text: str, seed: int) -> np.ndarray:
        return self.studio.sample(taught.model, taught.encode(self.named(text)), self.negative, seed)

    def with_match(self, taught: Taught, reference, guided: bool, text: str, seed: int) -> np.ndarray:
        model = matched(self.school, taught, self.lesson, reference, self.named(text), guided)
        return self.studio.sample(model, taught.encode(self.named(text)), self.negative, seed)

    def figures(self, name: str, draw: Callable[[str, int], np.ndarray], against: list[np.ndarray] | None = None,
                **more) -> list[np.ndarray]:
        """Adds a row of means over the lesson's pictures; their layout is compared with ``against``."""
        pictures, found, lesson = [], [], self.lesson
        for place, (scene, facing, seed) in enumerate(lesson.wanted):
            picture = draw(caption(lesson.subject, facing=facing, scene=scene), seed)
            other = (against[place], look(self.judge, against[place])) if against else None
            found.append(measured(self.judge, picture, self.truth(scene), other))
            pictures.append(picture)
        self.rows.append({"name": name, **{key: mean_of(one.get(measure) for one in found) for measure, key in MEASURES.items()},
                          **more})
        self.strip.append(pictures[0])
        return pictures

    def drift(self, model, encode: Callable[[str], list]) -> float | None:
        """How far pictures of the class alone are from the subject's colours."""
        pictures = [self.studio.sample(model, encode(f"a photo of a {self.kind}"), self.negative, seed) for seed in (901, 902)]
        return mean_of(drift(self.judge, one, self.truth(self.lesson.scenes[0])).get(DRIFT) for one in pictures)

    def truth(self, scene: str) -> Truth:
        return Truth(self.lesson.pictures[0], self.lesson.parts[0], self.kind, scene)

    def teach(self, name: str) -> None:
        """Adds the rows of one method: alone, and with DreamMatcher on top."""
        learn = {**methods(self.school), **ablations(self.school)}[name]
        prior = self.school.prior(self.kind)
        begun = time.perf_counter()
        taught = learn(self.lesson, prior)
        seconds, numbers = time.perf_counter() - begun, taught.numbers()
        if name in ablations(self.school):
            self.figures(name, partial(self.alone, taught))
            return
        alone = self.figures(name, partial(self.alone, taught), drift=self.drift(taught.model, taught.encode), seconds=seconds,
                             parameters=sum(value.numel() for value in numbers.values()), bytes=len(save(numbers)) / 1000)
        reference = reference_of(self.school, taught, self.lesson)
        for ending, guided in ((MATCHED, False), (GUIDED, True)):
            self.figures(name + ending, partial(self.with_match, taught, reference, guided), alone)


def names_of(school: School) -> list[str]:
    return [PLAIN, *methods(school), *ablations(school)]


def done(folder: Path, number: int, name: str) -> Path:
    """The file of one subject by one method, beside a strip of its pictures."""
    return folder / f"{number:03} {name}.json"


def teach(school: School, lesson: Lesson, folder: Path, number: int, name: str) -> None:
    """Makes and keeps what :func:`done` names."""
    drawing = Drawing(school, lesson)
    if name == PLAIN:
        drawing.strip.append(lesson.pictures[0])
        drawing.figures(PLAIN, drawing.plain,
                        drift=drawing.drift(school.studio.model, lambda text: school.studio.prompt(text)[0]))
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
    """Where subjects are kept: another folder for other weights, lessons and choices."""
    files = [Path(__file__).with_name("school.py"), ROOT / "toybox" / "model.safetensors"]
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


def run(school: School, subjects: int, prompts: int, first: int, folder: Path) -> None:
    """Teaches some subjects by every method. What was made before is not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for number, lesson in enumerate(lessons(subjects, prompts, first), first):
            for name in names_of(school):
                if not done(folder, number, name).exists():
                    teach(school, lesson, folder, number, name)
                    print(f"subject {number}: {name} is done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=float, default=1.0, help="share of each method's steps")
    options = parser.parse_args()
    school = School(Host(ROOT / "build" / f"host-learn-{options.first}"), options.steps)
    folder = folder_of(options.prompts, options.steps)
    run(school, options.subjects, options.prompts, options.first, folder)
    names = names_of(school)
    print(markdown(merged(folder, names), COLUMNS, "method"))
    pairs = [(name, name + more) for name in methods(school) for more in (MATCHED, GUIDED)]
    pairs += [("Textual Inversion", "ViCo"), *(("ViCo", name) for name in ablations(school))]
    print(compared(rows_of(folder, names), "subject_error", pairs))


if __name__ == "__main__":
    main()
