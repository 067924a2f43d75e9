"""What Toybox is taught, and by which methods: what ``make learn`` compares."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from harness.boot import Host
from toybox.draw import render
from toybox.judge import load_judge
from toybox.world import CLASSES, SCENES, Subject, random_pose, random_scene, unseen_subject

from .studio import Studio

WORD, PICTURES, CLASS_PICTURES = "sks", 4, 16
#: what the word of Custom Diffusion begins as: it stands before the class, where Toybox's captions have a colour
COLOUR = "red"


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


@dataclass(frozen=True, eq=False)
class Taught:
    """What came of a lesson."""

    model: object  # the host's MODEL that knows the subject
    learned: object
    encode: Callable[[str], list]  # a prompt as CONDITIONING

    def numbers(self) -> dict[str, torch.Tensor]:
        """What is saved, in the precision of the files."""
        if hasattr(self.learned, "tensors"):  # ViCo's
            return {**self.learned.tensors, "word": self.learned.rows}
        return {name: value.half().contiguous() for name, value in self.learned.lora.items()} | self.learned.embeddings


class School:
    """Toybox and every way to teach it."""

    def __init__(self, host: Host, steps: float = 1.0):
        self.studio, self.judge, self.share = Studio(host), load_judge(), steps
        self.nodes, self.seen = host.nodes, {}

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

    def dreambooth(self, lesson: Lesson, prior, kind: str, rate: float, steps: int, rank: int = 4,
                   text: bool = False) -> Taught:
        model, clip, vae = self.studio.model, self.studio.clip, self.studio.vae
        own = self.training_set(lesson.pictures, lesson.subject.kind, WORD)
        made, clip, learned, _ = self.nodes["DreamMatcherDreamBooth"]().learn(
            model, clip, vae, own, kind, max(1, round(steps * self.share)), rate, 0, prior_set=prior, rank=rank, batch=4,
            text_encoder=text)
        return Taught(made, learned, partial(self.encoded, clip))

    def textual_inversion(self, lesson: Lesson, steps: int = 400, rate: float = 2e-2) -> Taught:
        own = self.training_set(lesson.pictures, lesson.subject.kind, WORD)
        model, clip, learned, _ = self.nodes["DreamMatcherTextualInversion"]().learn(
            self.studio.model, self.studio.clip, self.studio.vae, own, lesson.subject.kind, 1,
            max(1, round(steps * self.share)), rate, 0, batch=4)
        return Taught(model, learned, partial(self.encoded, clip))

    def custom_diffusion(self, lesson: Lesson, prior, steps: int = 400, rates: tuple[float, float] = (1e-3, 2e-2)) -> Taught:
        own = self.training_set(lesson.pictures, lesson.subject.kind, WORD)
        model, clip, learned, _ = self.nodes["DreamMatcherCustomDiffusion"]().learn(
            self.studio.model, self.studio.clip, self.studio.vae, own, COLOUR, max(1, round(steps * self.share)),
            rates[0], 0, prior_set=prior, sizes=False, batch=4, word_rate=rates[1])
        return Taught(model, learned, partial(self.encoded, clip))

    def vico(self, lesson: Lesson, steps: int = 600, rates: tuple[float, float] = (2e-2, 1e-3), looks: bool = True,
             **chosen) -> Taught:
        """It looks at the first of the pictures; ``looks`` off leaves the word alone."""
        studio, own = self.studio, self.training_set(lesson.pictures, lesson.subject.kind, WORD)
        key = (own.fingerprint(), steps, rates, *sorted(chosen.items()))
        if key not in self.seen:
            self.seen = {key: self.nodes["DreamMatcherViCoTrain"]().learn(
                studio.model, studio.clip, studio.vae, own, lesson.subject.kind, max(1, round(steps * self.share)), *rates, 0,
                **chosen)}
        learned, clip, _ = self.seen[key]
        image, model = torch.from_numpy(np.array(lesson.pictures[0])).float()[None] / 255, studio.model
        if looks:
            model = self.nodes["DreamMatcherViCoApply"]().apply(model, learned, 1.0, 0.0, 1.0, image, studio.vae)[0]
        return Taught(model, learned, partial(self.encoded, clip))

    def encoded(self, clip, prompt: str) -> list:
        """CONDITIONING that says where the word stands, if it does."""
        conditioning = self.studio.module("dreammatcher.host.conditioning")
        marked = conditioning.subject_of(clip, prompt, WORD) if WORD in prompt.split() else None
        return conditioning.encode(clip, prompt, marked)


def methods(school: School) -> dict[str, Callable[[Lesson, object], Taught]]:
    """Name -> how a subject is taught, given its lesson and pictures of its class."""
    return {
        "Textual Inversion": lambda lesson, prior: school.textual_inversion(lesson),
        "Custom Diffusion": lambda lesson, prior: school.custom_diffusion(lesson, prior),
        "DreamBooth LoRA": lambda lesson, prior: school.dreambooth(lesson, prior, "LoRA", 1e-3, 400, 8, True),
        "DreamBooth LoRA without prior": lambda lesson, prior: school.dreambooth(lesson, None, "LoRA", 1e-3, 400, 8, True),
        "DreamBooth full": lambda lesson, prior: school.dreambooth(lesson, prior, "full", 1e-4, 300, text=True),
        "ViCo": lambda lesson, prior: school.vico(lesson),
    }


def ablations(school: School) -> dict[str, Callable[[Lesson, object], Taught]]:
    """Parts of ViCo left out, as in its paper; drawn alone."""
    return {
        "ViCo, its word alone": lambda lesson, prior: school.vico(lesson, looks=False),
        "ViCo without mask": lambda lesson, prior: school.vico(lesson, masked=False),
        "ViCo without regularisation": lambda lesson, prior: school.vico(lesson, regularisation=0.0),
    }
