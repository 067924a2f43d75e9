"""Other ways to the same picture: a reference that was never inverted, the diptych that artists make by hand, and on transformers
the reference's keys and values in place of the picture's."""

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


def copied(runner: ToyboxRunner, ready: SimpleNamespace, start: float = 0.0):
    """The transformer with keys and values of the reference's picture tokens in place of its own, in every block.

    The reference is a row of every call, noised by one fixed noise. ``start``: share of the noise levels that stay plain.
    """
    clean = runner.model.model.process_latent_in(ready.reference.latent)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    shown = ready.reference.positive.cross_attention

    def replace_rows(func, query, key, value, heads, *rest, **named):
        cells = clean.shape[-2] * clean.shape[-1]  # a token is one cell of Toybox's latents, and the picture ends the sequence
        key, value = key.clone(), value.clone()
        for part in (key, value):
            part[:-1, ..., -cells:, :] = part[-1:, ..., -cells:, :]
        return func(query, key, value, heads, *rest, **named)

    def with_a_row(apply_model, call: dict) -> torch.Tensor:
        x, sigmas, given = call["input"], call["timestep"], call["c"]
        if float(sigmas[0]) > 1 - start:
            return apply_model(x, sigmas, **given)
        row = torch.lerp(clean, noise, float(sigmas[0]))
        options = {**given["transformer_options"], "optimized_attention_override": replace_rows}
        inputs = {**given, "c_crossattn": torch.cat((given["c_crossattn"], shown)), "transformer_options": options}
        return apply_model(torch.cat((x, row)), torch.cat((sigmas, sigmas[:1])), **inputs)[:-1]

    model = runner.model.clone()
    model.set_model_unet_function_wrapper(with_a_row)
    return model


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
