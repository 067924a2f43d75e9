"""The subjects that Toybox is taught and the methods that teach them, as ``make learn`` compares them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from harness.boot import Host
from toybox.draw import render
from toybox.judge import load_judge
from toybox.world import CLASSES, SCENES, Subject, random_pose, random_scene, unseen_subject

from .toybox_runner import ToyboxRunner

WORD, PICTURES, CLASS_PICTURES = "sks", 4, 16
#: what the word of Custom Diffusion begins as: it stands before the class, where Toybox's captions have a colour
COLOUR = "red"


@dataclass(frozen=True, eq=False)
class SubjectCase:
    """One subject, what is learned from, and what is drawn then."""

    subject: Subject
    pictures: list[np.ndarray]
    parts: list[np.ndarray]
    scenes: list[str]  # of the pictures
    wanted: list[tuple[str, str | None, int]]  # scene, facing and seed of the pictures to draw


def subject_cases(count: int, prompts: int, first: int = 0) -> list[SubjectCase]:
    """Classes in turn; subjects, poses, scenes and seeds are unseen in training and in the other benchmarks."""
    cases = []
    for index in range(first, first + count):
        rng = random.Random(f"learn-{index}")
        subject = unseen_subject(50_000 + index, CLASSES[index % len(CLASSES)])
        scenes = [random_scene(rng) for _ in range(PICTURES)]
        drawn = [render(subject, random_pose(rng), scene) for scene in scenes]
        wanted = [(rng.choice(sorted(SCENES)), rng.choice((None, "left", "right")), rng.randrange(1 << 30))
                  for _ in range(prompts)]
        cases.append(SubjectCase(subject, [picture for picture, _ in drawn], [parts for _, parts in drawn],
                                 [scene.name for scene in scenes], wanted))
    return cases


@dataclass(frozen=True, eq=False)
class Taught:
    """The result of teaching one case."""

    model: Any  # the host's MODEL that knows the subject
    learned: Any
    encode: Callable[[str], list]  # a prompt as CONDITIONING

    def numbers(self) -> dict[str, torch.Tensor]:
        """The tensors that are saved, in the precision of the files."""
        if hasattr(self.learned, "tensors"):  # ViCo's
            return {**self.learned.tensors, "word": self.learned.rows}
        return {name: value.half().contiguous() for name, value in self.learned.lora.items()} | self.learned.embeddings


class MethodRunner:
    """Toybox and every way to teach it."""

    def __init__(self, host: Host, steps: float = 1.0):
        self.runner, self.judge, self.share = ToyboxRunner(host), load_judge(), steps
        self.nodes = host.nodes
        self.seen: dict[tuple, Any] = {}

    def training_set(self, pictures: list[np.ndarray], kind: str, identifier: str):
        images = torch.from_numpy(np.stack(pictures)).float() / 255
        return self.nodes["DreamMatcherTrainingSet"]().make(identifier, kind, "photo", 128, images)["result"][0]

    def prior(self, kind: str):
        """Pictures of a class that the model itself draws."""
        positive, negative = (self.runner.prompt(text)[0] for text in (f"a photo of a {kind}", ""))
        empty = {"samples": torch.zeros(CLASS_PICTURES, 4, 16, 16)}
        latents = self.nodes["KSampler"]().sample(self.runner.model, 77, 20, self.runner.sampling.cfg, "dpmpp_2m", "karras",
                                                  positive, negative, empty)[0]["samples"]
        return self.training_set([self.runner.decode({"samples": one[None]}) for one in latents], kind, "")

    def dreambooth(self, case: SubjectCase, prior, kind: str, rate: float, steps: int, rank: int = 4,
                   text: bool = False) -> Taught:
        model, clip, vae = self.runner.model, self.runner.clip, self.runner.vae
        pictures = self.training_set(case.pictures, case.subject.kind, WORD)
        trained, clip, learned, _ = self.nodes["DreamMatcherDreamBooth"]().learn(
            model, clip, vae, pictures, kind, max(1, round(steps * self.share)), rate, 0, prior_set=prior, rank=rank, batch=4,
            text_encoder=text)
        return Taught(trained, learned, partial(self.encoded, clip))

    def textual_inversion(self, case: SubjectCase, steps: int = 400, rate: float = 2e-2) -> Taught:
        pictures = self.training_set(case.pictures, case.subject.kind, WORD)
        model, clip, learned, _ = self.nodes["DreamMatcherTextualInversion"]().learn(
            self.runner.model, self.runner.clip, self.runner.vae, pictures, case.subject.kind, 1,
            max(1, round(steps * self.share)), rate, 0, batch=4)
        return Taught(model, learned, partial(self.encoded, clip))

    def custom_diffusion(self, case: SubjectCase, prior, steps: int = 400, rates: tuple[float, float] = (1e-3, 2e-2)) -> Taught:
        pictures = self.training_set(case.pictures, case.subject.kind, WORD)
        model, clip, learned, _ = self.nodes["DreamMatcherCustomDiffusion"]().learn(
            self.runner.model, self.runner.clip, self.runner.vae, pictures, COLOUR, max(1, round(steps * self.share)),
            rates[0], 0, prior_set=prior, sizes=False, batch=4, word_rate=rates[1])
        return Taught(model, learned, partial(self.encoded, clip))

    def vico(self, case: SubjectCase, steps: int = 600, rates: tuple[float, float] = (2e-2, 1e-3), looks: bool = True,
             **chosen) -> Taught:
        """Teaches by ViCo, which looks at the first of the pictures; with ``looks`` off, only the word is used."""
        runner, pictures = self.runner, self.training_set(case.pictures, case.subject.kind, WORD)
        key = (pictures.fingerprint(), steps, rates, *sorted(chosen.items()))
        if key not in self.seen:
            self.seen = {key: self.nodes["DreamMatcherViCoTrain"]().learn(
                runner.model, runner.clip, runner.vae, pictures, case.subject.kind, max(1, round(steps * self.share)), *rates, 0,
                **chosen)}
        learned, clip, _ = self.seen[key]
        image, model = torch.from_numpy(np.array(case.pictures[0])).float()[None] / 255, runner.model
        if looks:
            model = self.nodes["DreamMatcherViCoApply"]().apply(model, learned, 1.0, 0.0, 1.0, image, runner.vae)[0]
        return Taught(model, learned, partial(self.encoded, clip))

    def encoded(self, clip, prompt: str) -> list:
        """CONDITIONING that says where the word stands, if it does."""
        conditioning = self.runner.module("dreammatcher.host.text.conditioning")
        marked = conditioning.subject_of(clip, prompt, WORD) if WORD in prompt.split() else None
        return conditioning.encode(clip, prompt, marked)


def methods(runner: MethodRunner) -> dict[str, Callable[[SubjectCase, object], Taught]]:
    """Name -> how a subject is taught, given its case and pictures of its class."""
    return {
        "Textual Inversion": lambda case, prior: runner.textual_inversion(case),
        "Custom Diffusion": lambda case, prior: runner.custom_diffusion(case, prior),
        "DreamBooth LoRA": lambda case, prior: runner.dreambooth(case, prior, "LoRA", 1e-3, 400, 8, True),
        "DreamBooth LoRA without prior": lambda case, prior: runner.dreambooth(case, None, "LoRA", 1e-3, 400, 8, True),
        "DreamBooth full": lambda case, prior: runner.dreambooth(case, prior, "full", 1e-4, 300, text=True),
        "ViCo": lambda case, prior: runner.vico(case),
    }


def ablations(runner: MethodRunner) -> dict[str, Callable[[SubjectCase, object], Taught]]:
    """Parts of ViCo left out, as in its paper; drawn alone."""
    return {
        "ViCo, its word alone": lambda case, prior: runner.vico(case, looks=False),
        "ViCo without mask": lambda case, prior: runner.vico(case, masked=False),
        "ViCo without regularisation": lambda case, prior: runner.vico(case, regularisation=0.0),
    }
