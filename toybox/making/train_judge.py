"""``python -m toybox.making.train_judge``: trains the judge on renders as the model would show them.

They are noisy, blurred, and passed through the autoencoder. Resumes from its checkpoint and writes toybox/judge.safetensors and,
as judge.json, its accuracy.
"""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from harness.library import use_library

from ..draw import render
from ..judge import JUDGE_FILE, SCENE_NAMES, Judge, load_judge
from ..world import CLASSES, random_pose, random_scene, unseen_subject
from .dataset import BUILD, Dataset, open_dataset
from .optimisation import Run

STEPS, BATCH, RATE = 1_800, 10, 3e-3
ROUND_TRIPS = 3_000  # of the training pictures, how many are also seen through the autoencoder


def tensor_of(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] in 0..1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div_(255)


@torch.no_grad()
def round_trips(data: Dataset, folder: Path) -> np.ndarray:
    """The first pictures through the autoencoder with noisy latents, uint8 [N, 128, 128, 3]; made once."""
    file = folder / "round_trips.npy"
    if not file.exists():
        use_library(BUILD / "host")
        import comfy.taesd.taesd

        model = comfy.taesd.taesd.TAESD()
        model.load_state_dict(torch.load(folder / "autoencoder.pt", weights_only=True, map_location="cpu"))
        pictures = np.empty((ROUND_TRIPS, 128, 128, 3), np.uint8)
        noise = torch.Generator().manual_seed(0)
        for start in range(0, ROUND_TRIPS, 25):
            latent = model.taesd_encoder(tensor_of(data.pictures[start:start + 25]))
            strength = 0.35 * torch.rand(len(latent), 1, 1, 1, generator=noise)
            decoded = model.taesd_decoder(latent + strength * torch.randn(latent.shape, generator=noise))
            pictures[start:start + 25] = (decoded.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        np.save(file, pictures)
    return np.load(file)


def worn(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Noise and blur of random strength, per picture."""
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = torch.from_numpy(rng.uniform(0, 1, (len(pictures), 1, 1, 1))).float() ** 2
    grain = torch.from_numpy(rng.uniform(0, 0.06, (len(pictures), 1, 1, 1))).float()
    return torch.lerp(pictures, blurred, amount) + grain * torch.randn_like(pictures)


def train(data: Dataset, folder: Path) -> Judge:
    torch.manual_seed(0)
    judge = Judge().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not declare it
    run = Run("judge", folder, judge, STEPS, RATE, decays=())
    seen = round_trips(data, folder)
    kinds = torch.tensor([CLASSES.index(shown.subject.kind) for shown in data.shown])
    scenes = torch.tensor([SCENE_NAMES.index(shown.scene.name) for shown in data.shown])

    def loss() -> torch.Tensor:
        rng = np.random.default_rng(run.step)
        through, plain = rng.integers(0, len(seen), BATCH // 2), rng.integers(0, len(data), BATCH // 2)
        rows = np.concatenate((through, plain))
        pictures = tensor_of(np.concatenate((seen[through], data.pictures[plain])))
        y, x = rng.integers(0, 2, 2)  # one pixel of every 2x2 block is judged: a quarter of the work, the same gradient
        labels = torch.from_numpy(data.labels[rows][:, y::2, x::2].astype(np.int64))
        parts, kind, scene = judge.at_half_size(worn(pictures, rng).contiguous(memory_format=torch.channels_last))
        return (F.cross_entropy(parts[:, 2 * y + x::4], labels) + 0.1 * F.cross_entropy(kind, kinds[rows])
                + 0.1 * F.cross_entropy(scene, scenes[rows]))

    step = run.stepper(loss)
    while run.step < run.steps:
        run.advance(step)
    return judge.eval()


@torch.no_grad()
def accuracy(judge: Judge, count: int = 200) -> dict[str, float]:
    """On renders of subjects that no training picture had: shares of pixels and pictures told right."""
    right: dict[str, list[float]] = {"foreground_pixels": [], "all_pixels": [], "class": [], "scene": []}
    for index in range(count):
        rng = random.Random(f"held-out-{index}")
        subject, pose, scene = unseen_subject(index), random_pose(rng), random_scene(rng)
        picture, labels = render(subject, pose, scene)
        parts, kind, background = judge(tensor_of(picture[None]))
        hit = parts.argmax(1)[0].numpy() == labels
        right["foreground_pixels"].append(hit[labels > 0].mean())
        right["all_pixels"].append(hit.mean())
        right["class"].append(CLASSES[kind.argmax()] == subject.kind)
        right["scene"].append(SCENE_NAMES[background.argmax()] == scene.name)
    return {name: round(float(np.mean(values)), 4) for name, values in right.items()} | {"pictures": count}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    judge = train(open_dataset(), BUILD)
    save_file({name: (value.half() if value.is_floating_point() else value).contiguous()
               for name, value in judge.state_dict().items()}, JUDGE_FILE)
    figures = accuracy(load_judge())
    JUDGE_FILE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    logging.getLogger("toybox").info("judge: %s", figures)


if __name__ == "__main__":
    main()
