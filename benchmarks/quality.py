"""``make quality``: what DreamMatcher does to subject, structure and scene, on Toybox, against the plain model and two
ablations. Writes build/quality.json and prints the README's table.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from harness.boot import Host
from harness.library import ROOT
from toybox.draw import render
from toybox.judge import Verdict, load_judge, look, structure_iou, subject_error
from toybox.world import CLASSES, SCENES, Pose, Scene, Subject, caption, random_pose, random_scene, unseen_subject

FILE = ROOT / "build" / "quality.json"
STEPS, CFG = 50, 4.0
PLAIN, REPLACED, MATCHED, EVERYWHERE = "plain", "K+V replacement", "DreamMatcher", "DreamMatcher without mask"


@dataclass(frozen=True)
class Case:
    """One reference and one picture to make of it."""

    subject: Subject
    pose: Pose
    scene: Scene
    wanted_scene: str
    facing: str | None
    seed: int

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        return render(self.subject, self.pose, self.scene)

    def reference_prompt(self) -> str:
        return caption(self.subject, scene=self.scene.name)

    def prompt(self) -> str:
        return caption(self.subject, facing=self.facing, scene=self.wanted_scene)


def cases(count: int) -> list[Case]:
    """Classes in turn; every case has its own subject, poses, scenes and seed, all unseen in training."""
    made = []
    for index in range(count):
        rng = random.Random(f"quality-{index}")
        scene = random_scene(rng)
        wanted = rng.choice([name for name in sorted(SCENES) if name != scene.name])
        made.append(Case(unseen_subject(10_000 + index, CLASSES[index % len(CLASSES)]), random_pose(rng), scene, wanted,
                         rng.choice((None, "left", "right")), 500 + index))
    return made


class Studio:
    """Toybox in the host, and one way to sample for every arm."""

    def __init__(self, host: Host):
        self.host, self.module = host, host.pack().module
        self.model, self.clip, self.vae = host.nodes["ToyboxLoader"]().load()

    def encode(self, picture: np.ndarray) -> dict:
        return {"samples": self.vae.encode(torch.from_numpy(np.array(picture)).float()[None] / 255)}

    def decode(self, latent: dict) -> np.ndarray:
        return (self.vae.decode(latent["samples"])[0].clamp(0, 1) * 255).round().byte().numpy()

    def sample(self, model, positive: list, negative: list, seed: int) -> np.ndarray:
        empty = {"samples": torch.zeros(1, 4, 16, 16)}
        latent = self.host.nodes["KSampler"]().sample(
            model, seed, STEPS, CFG, "ddim", "ddim_uniform", positive, negative, empty, 1.0)[0]
        return self.decode(latent)

    def prepare(self, case: Case) -> SimpleNamespace:
        """Reference, prompts and masks of a case."""
        text = self.module("dreammatcher.host.conditioning")
        subjects = [text.subject_of(self.clip, prompt, case.subject.kind) for prompt in (case.reference_prompt(), case.prompt())]
        positive, target = (text.encode(self.clip, s.prompt, s) for s in subjects)
        negative = text.encode(self.clip, "")
        picture, parts = case.reference()
        reference, _ = self.module("dreammatcher.host.invert").invert_reference(
            self.model, self.encode(picture), positive, negative, STEPS, "ddim_uniform")
        features = self.module("dreammatcher.features")
        reference = reference.with_store(features.FeatureStore())  # every arm reads the same features
        mask = self.module("dreammatcher.settings").MaskSettings(*subjects)
        return SimpleNamespace(picture=picture, parts=parts, reference=reference, mask=mask, target=target, negative=negative)

    def matched(self, ready: SimpleNamespace, mask: dict | None = None, pca: int | None = 256, **settings):
        """The model with one arm's settings; ``mask`` changes mask settings."""
        chosen = self.module("dreammatcher.settings").ApplySettings(**settings)
        reference = ready.reference
        if pca != reference.store.options.pca:
            options = replace(reference.store.options, pca=pca)
            reference = reference.with_store(replace(reference.store, options=options))
        return self.module("dreammatcher.host.apply").apply(
            self.model, reference, replace(ready.mask, **(mask or {})), chosen)[0]


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
        "Otsu foreground": studio.matched(ready, {"otsu": True}),
        "no PCA": studio.matched(ready, pca=None),
        "cycle threshold 0.2": studio.matched(ready, {"threshold": 0.2}),
        "start 0.3": studio.matched(ready, start=0.3),
    }


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
        table[name]["n"] = len(rows)
        table[name]["n_subject"] = len(comparable)
    return table


def markdown(table: dict[str, dict[str, float]]) -> str:
    plain = table[PLAIN]["subject_error"]
    lines = ["| arm | subject error ↓ | against plain | structure IoU ↑ | scene accuracy ↑ | class accuracy ↑ |",
             "|---|---|---|---|---|---|"]
    lines += [f"| {name} | {row['subject_error']:.1f} | {100 * (row['subject_error'] / plain - 1):+.0f}% | "
              f"{row['structure_iou']:.2f} | {row['scene_accuracy']:.2f} | {row['class_accuracy']:.2f} |"
              for name, row in table.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--pictures", type=Path, help="folder for a strip of pictures per case")
    parser.add_argument("--ablations", action="store_true", help="measure open choices instead; writes no quality.json")
    options = parser.parse_args()
    made = ablations if options.ablations else arms
    studio, judge = Studio(Host(ROOT / "build" / "host")), load_judge()
    chosen, rows = cases(options.cases), []
    with torch.inference_mode():
        limits = bounds(judge, chosen, studio)
        for number, case in enumerate(chosen):
            ready = studio.prepare(case)
            pictures = {name: studio.sample(model, ready.target, ready.negative, case.seed)
                        for name, model in made(studio, ready).items()}
            seen = {name: look(judge, picture) for name, picture in pictures.items()}
            rows.append({name: measure(case, ready, pictures[name], seen[name], seen[PLAIN]) for name in pictures})
            if options.pictures:
                save_strip(options.pictures, number, [ready.picture, *pictures.values()])
            print(f"case {number + 1} of {len(chosen)}", flush=True)
    table = summarise(rows)
    if not options.ablations:
        FILE.write_text(json.dumps({**table, "bounds": limits}, indent=1) + "\n", encoding="utf-8")
    print(markdown(table))
    print(f"bounds of subject error: same subject {limits['floor']:.1f}, another subject {limits['ceiling']:.1f}")


def save_strip(folder: Path, number: int, pictures: list[np.ndarray]) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(pictures, 1)).save(folder / f"{number:03}.png")


if __name__ == "__main__":
    main()
