"""``make learn``: Toybox learns subjects that it never saw, by every method, alone and with DreamMatcher on top.

Writes build/learn.json and a strip of pictures for each subject, and prints a table. Four pictures of each subject are learned
from; prompts are of other scenes, poses and seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from harness.boot import Host
from harness.library import ROOT
from toybox.draw import render
from toybox.judge import load_judge, look, palette_distance, part_colours, subject_error
from toybox.layout import silhouette_iou
from toybox.shapes import PART_ROLES
from toybox.world import CLASSES, SCENES, Subject, caption, random_pose, random_scene, unseen_subject

from .quality import mean_of, shown
from .studio import Studio, save_strip

FILE, FOLDER = ROOT / "build" / "learn.json", ROOT / "build" / "learn"
WORD, PICTURES, CLASS_PICTURES = "sks", 4, 16
PLAIN, MATCHED = "plain", " + DreamMatcher"
#: measure -> (column, decimals)
COLUMNS = {"subject_error": ("subject error ↓", 1), "silhouette_iou": ("silhouette IoU ↑", 2), "scene": ("scene ↑", 2),
           "class": ("class ↑", 2), "drift": ("distance of the class from the subject ↑", 1), "seconds": ("seconds", 0),
           "parameters": ("parameters", 0), "bytes": ("file, KB", 0)}


@dataclass(frozen=True, eq=False)
class Lesson:
    """One subject, what is learned from, and what is drawn then."""

    subject: Subject
    pictures: list[np.ndarray]
    parts: list[np.ndarray]
    scenes: list[str]  # of the pictures
    wanted: list[tuple[str, str | None, int]]  # scene, facing and seed of the pictures to draw


def lessons(count: int, prompts: int, first: int = 0) -> list[Lesson]:
    """Classes in turn; subjects, poses, scenes and seeds are unseen in training and in the other benchmarks."""
    made = []
    for index in range(first, first + count):
        rng = random.Random(f"learn-{index}")
        subject = unseen_subject(50_000 + index, CLASSES[index % len(CLASSES)])
        scenes = [random_scene(rng) for _ in range(PICTURES)]
        drawn = [render(subject, random_pose(rng), scene) for scene in scenes]
        wanted = [(rng.choice(sorted(SCENES)), rng.choice((None, "left", "right")), rng.randrange(1 << 30))
                  for _ in range(prompts)]
        made.append(Lesson(subject, [picture for picture, _ in drawn], [parts for _, parts in drawn],
                           [scene.name for scene in scenes], wanted))
    return made


class School:
    """Toybox and every way to teach it."""

    def __init__(self, host: Host, steps: float = 1.0):
        self.studio, self.judge, self.share = Studio(host), load_judge(), steps
        self.nodes = host.nodes

    def training_set(self, pictures: list[np.ndarray], kind: str, identifier: str):
        images = torch.from_numpy(np.stack(pictures)).float() / 255
        return self.nodes["DreamMatcherTrainingSet"]().make(identifier, kind, "photo", 128, images)["result"][0]

    def prior(self, kind: str):
        """Pictures of a class that the model itself draws."""
        positive, negative = (self.studio.prompt(text)[0] for text in (f"a photo of a {kind}", ""))
        empty = {"samples": torch.zeros(CLASS_PICTURES, 4, 16, 16)}
        latents = self.nodes["KSampler"]().sample(self.studio.model, 77, 20, self.studio.cfg, "dpmpp_2m", "karras", positive,
                                                  negative, empty)[0]["samples"]
        return self.training_set([self.studio.decode({"samples": one[None]}) for one in latents], kind, "")

    def dreambooth(self, lesson: Lesson, prior, kind: str, rate: float, steps: int, rank: int = 4, text: bool = False):
        model, clip, vae = self.studio.model, self.studio.clip, self.studio.vae
        own = self.training_set(lesson.pictures, lesson.subject.kind, WORD)
        made, clip, learned, _ = self.nodes["DreamMatcherDreamBooth"]().learn(
            model, clip, vae, own, kind, max(1, round(steps * self.share)), rate, 0, prior_set=prior, rank=rank, batch=4,
            text_encoder=text)
        return made, learned, lambda prompt: self._encoded(clip, prompt)

    def textual_inversion(self, lesson: Lesson, steps: int = 400, rate: float = 2e-2):
        own = self.training_set(lesson.pictures, lesson.subject.kind, WORD)
        model, _, learned, _ = self.nodes["DreamMatcherTextualInversion"]().learn(
            self.studio.model, self.studio.clip, self.studio.vae, own, lesson.subject.kind, 1,
            max(1, round(steps * self.share)), rate, 0, batch=4)
        return model, learned, lambda prompt: self._with_rows(prompt, learned.embeddings[WORD])

    def custom_diffusion(self, lesson: Lesson, prior, steps: int = 400, rate: float = 1e-3):
        own = self.training_set(lesson.pictures, lesson.subject.kind, WORD)
        model, _, learned, _ = self.nodes["DreamMatcherCustomDiffusion"]().learn(
            self.studio.model, self.studio.clip, self.studio.vae, own, lesson.subject.kind, max(1, round(steps * self.share)),
            rate, 0, prior_set=prior, sizes=False, batch=4)
        return model, learned, lambda prompt: self._with_rows(prompt, learned.embeddings[WORD])

    def _encoded(self, clip, prompt: str) -> list:
        return self.studio.module("dreammatcher.host.conditioning").encode(clip, prompt)

    def _with_rows(self, prompt: str, rows: torch.Tensor) -> list:
        """The prompt with the learned vectors in place of the word, as embedding:NAME would have it."""
        tokens = self.studio.clip.tokenize(prompt)
        marker = self.studio.clip.tokenize(WORD)["l"][0][1][0]
        tokens["l"] = [[(rows[0] if token == marker else token, weight) for token, weight in chunk] for chunk in tokens["l"]]
        cond, pooled = self.studio.clip.encode_from_tokens(tokens, return_pooled=True)
        return [[cond, {"pooled_output": pooled}]]


def methods(school: School) -> dict[str, Callable]:
    """Name -> a function of a lesson and its prior that gives model, what was learned, and how prompts are encoded."""
    return {
        "Textual Inversion": lambda lesson, prior: school.textual_inversion(lesson),
        "Custom Diffusion": lambda lesson, prior: school.custom_diffusion(lesson, prior),
        "DreamBooth LoRA": lambda lesson, prior: school.dreambooth(lesson, prior, "LoRA", 1e-3, 400),
        "DreamBooth LoRA with text encoder": lambda lesson, prior: school.dreambooth(lesson, prior, "LoRA", 2e-3, 400, 8, True),
        "DreamBooth LoRA without prior": lambda lesson, prior: school.dreambooth(lesson, None, "LoRA", 1e-3, 400),
        "DreamBooth full": lambda lesson, prior: school.dreambooth(lesson, prior, "full", 1e-4, 300),
    }


def matched(school: School, model, lesson: Lesson, prompt: str, encode: Callable):
    """The model with DreamMatcher on top; the reference is the first of the learned pictures, with a prompt that names it."""
    studio, kind = school.studio, lesson.subject.kind
    reference_prompt = f"a photo of a {WORD} {kind} {SCENES[lesson.scenes[0]]}"
    conditioning = studio.module("dreammatcher.host.conditioning")
    subjects = [conditioning.subject_of(studio.clip, text, kind) for text in (reference_prompt, prompt)]
    positive = [[encode(reference_prompt)[0][0], {**encode(reference_prompt)[0][1], "dreammatcher_subject": subjects[0]}]]
    reference, _ = studio.module("dreammatcher.host.matching.invert").invert_reference(
        model, studio.encode(lesson.pictures[0]), positive, studio.prompt("")[0], 50, "ddim_uniform")
    settings = studio.module("dreammatcher.matching.settings")
    return studio.module("dreammatcher.host.matching.apply").apply(
        model, reference, settings.MaskSettings(*subjects), settings.ApplySettings())[0]


def drawn(studio: Studio, model, named: Callable, encode: Callable, text: str, seed: int) -> np.ndarray:
    return studio.sample(model, encode(named(text)), studio.prompt("")[0], seed)


def drawn_matched(school: School, model, lesson: Lesson, named: Callable, encode: Callable, text: str, seed: int) -> np.ndarray:
    return drawn(school.studio, matched(school, model, lesson, named(text), encode), named, encode, text, seed)


def file_size(learned) -> int:
    """Bytes of what is saved."""
    halved = {name: value.half().contiguous() for name, value in learned.lora.items()}
    return len(save(halved | learned.embeddings))


def teach(school: School, lesson: Lesson, number: int) -> list[dict]:
    """A row of figures for each method, and a strip of pictures of the first prompt."""
    studio, judge, kind = school.studio, school.judge, lesson.subject.kind
    colours = part_colours(lesson.pictures[0], lesson.parts[0], kind)
    palette = [colour for part, (colour, _) in colours.items() if PART_ROLES[kind][part] != "white"]
    negative, prior = studio.prompt("")[0], school.prior(kind)
    rows, strip = [], [lesson.pictures[0]]

    def figures(name: str, draw: Callable[[str, int], np.ndarray], against: list[np.ndarray] | None = None, **more) -> list:
        pictures, found = [], []
        for place, (scene, facing, seed) in enumerate(lesson.wanted):
            picture = draw(caption(lesson.subject, facing=facing, scene=scene), seed)
            seen = look(judge, picture)
            found.append({
                "subject_error": subject_error(picture, seen.parts, lesson.pictures[0], lesson.parts[0], kind),
                "silhouette_iou": silhouette_iou(seen.parts, look(judge, against[place]).parts) if against else None,
                "scene": float(seen.scene == scene), "class": float(seen.kind == kind)})
            pictures.append(picture)
        rows.append({"name": name, **{key: mean_of([one[key] for one in found]) for key in found[0]}, **more})
        strip.append(pictures[0])
        return pictures

    def drift(model, encode: Callable) -> float | None:
        picture = [studio.sample(model, encode(f"a photo of a {kind}"), negative, seed) for seed in (901, 902)]
        return mean_of([palette_distance(one, look(judge, one).parts, kind, palette) for one in picture])

    def named(text: str) -> str:
        return text.replace(f"a {kind}", f"a {WORD} {kind}", 1)

    def bare(text: str) -> list:
        return studio.prompt(text)[0]

    figures(PLAIN, lambda text, seed: studio.sample(studio.model, bare(text), negative, seed), drift=drift(studio.model, bare))
    for name, learn in methods(school).items():
        begun = time.perf_counter()
        model, learned, encode = learn(lesson, prior)
        seconds = time.perf_counter() - begun
        alone = figures(name, partial(drawn, studio, model, named, encode), drift=drift(model, encode), seconds=seconds,
                        parameters=learned.size(), bytes=file_size(learned) / 1000)
        figures(name + MATCHED, partial(drawn_matched, school, model, lesson, named, encode), alone)
    save_strip(FOLDER, number, strip)
    return rows


def summarise(rows: list[dict]) -> dict[str, dict]:
    names = dict.fromkeys(row["name"] for row in rows)
    return {name: {key: mean_of([row.get(key) for row in rows if row["name"] == name]) for key in COLUMNS} for name in names}


def markdown(table: dict[str, dict]) -> str:
    lines = [f"| method | {' | '.join(title for title, _ in COLUMNS.values())} |", "|" + "---|" * (len(COLUMNS) + 1)]
    return "\n".join(lines + [f"| {name} | {' | '.join(shown(row[key], digits) for key, (_, digits) in COLUMNS.items())} |"
                              for name, row in table.items()])


def run(host: Host, subjects: int, prompts: int, first: int = 0, steps: float = 1.0,
        keep: Path | None = None) -> dict[str, dict]:
    """Means over the subjects; ``keep`` is written anew after each of them."""
    school, rows = School(host, steps), []
    with torch.inference_mode():
        for number, lesson in enumerate(lessons(subjects, prompts, first)):
            rows += teach(school, lesson, number)
            print(f"subject {number + 1} of {subjects}", flush=True)
            if keep:
                keep.parent.mkdir(parents=True, exist_ok=True)
                keep.write_text(json.dumps(summarise(rows), indent=1))
    return summarise(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=float, default=1.0, help="share of each method's steps")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    print(markdown(run(Host(ROOT / "build" / "host"), options.subjects, options.prompts, options.first, options.steps,
                       options.file)))


if __name__ == "__main__":
    main()
