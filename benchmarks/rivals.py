"""Other ways to the same picture: a reference that was never inverted, and the diptych that artists make by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from toybox.evaluation import Case

from .toybox_runner import ToyboxRunner


def without_inversion(runner: ToyboxRunner, ready: SimpleNamespace, scale: float = 1.0, seed: int = 0) -> SimpleNamespace:
    """The case with its reference at sigma made of one seeded noise, x0 + scale * sigma * noise, in place of the inversion's."""
    inversion, features = runner.module("dreammatcher.matching.inversion"), runner.module("dreammatcher.matching.features")
    path = ready.reference.trajectory
    clean = ready.reference.latent.to(path.clean)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    ends = (path.sigmas[0], path.sigmas[-1])
    trajectory = inversion.Trajectory(ends, clean.repeat(2, 1, 1, 1), scale * noise.repeat(2, 1, 1, 1))
    reference = replace(ready.reference, trajectory=trajectory, store=features.FeatureStore())
    return SimpleNamespace(**{**vars(ready), "reference": reference})


def diptych(runner: ToyboxRunner, ready: SimpleNamespace, case: Case) -> np.ndarray:
    """The right half of a latent of double width whose left half is held to the reference.

    The right half starts from the noise of the plain picture.
    """
    import comfy.sample

    reference, how = ready.reference.latent, runner.sampling
    empty = torch.zeros_like(reference)
    noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in (case.seed + 1, case.seed)], -1)
    latent, mask = torch.cat([reference, empty], -1), torch.cat([empty, empty + 1], -1)[:, :1]
    latents = comfy.sample.sample(
        runner.model, noise, how.steps, how.cfg, how.sampler, how.scheduler, ready.target, ready.negative, latent,
        noise_mask=mask, seed=case.seed)
    return runner.decode({"samples": latents[..., reference.shape[-1]:]})
