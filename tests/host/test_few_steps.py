"""Distilled transformers: few steps, CFG 1 and one row a call; and prompts of different lengths, which take two calls."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from transformers_world import SIZE, applied, latent_of, other_reference


def heard(family, cfg: float, steps: int, negative: list) -> tuple:
    """Runs with and without a match: their clean estimates after each step, the rows of every call, and the trace."""
    import comfy.sample
    from comfy.patcher_extension import WrappersMP

    matched, trace = applied(family, other_reference(family))
    calls, found = [], {}
    for name, model in (("plain", family.model), ("matched", matched)):
        watched, estimates = model.clone(), []
        watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", lambda executor, x, *rest, name=name, **named: (
            calls.append((name, x.shape[0])), executor(x, *rest, **named))[1])
        noise = latent_of(family.model, 1000, *SIZE)
        with torch.inference_mode():
            comfy.sample.sample(watched, noise, steps, cfg, "euler", "simple", family.longer, negative, torch.zeros_like(noise),
                                callback=lambda step, clean, *_, estimates=estimates: estimates.append(clean.clone()), seed=0,
                                disable_pbar=True)
        found[name] = estimates
    return found, calls, trace


@pytest.mark.parametrize("steps", [1, 4])
def test_with_few_steps_at_cfg_1_every_evaluation_is_matched_from_the_first_on(family, steps):
    found, calls, trace = heard(family, 1.0, steps, family.negative)
    assert calls == [("plain", 1)] * steps + [("matched", 1)] * steps, "one row a call"
    assert all(not close(mine, plain, RUN) for mine, plain in zip(found["matched"], found["plain"])), "from the first step on"
    assert trace.noise_levels == steps and len(trace.snapshots) == steps and not trace.skipped
    assert trace.layers == 2 * steps and trace.why_nothing_matched() == ""
    said = family.pack.module("dreammatcher.host.matching.preview").about_few_levels(trace.noise_levels, len(trace.snapshots))
    assert said.startswith(f"few steps: {steps} noise levels lie between start and end, and all of them were matched")


def test_prompts_of_different_lengths_take_two_calls_and_both_are_matched(family):
    """As a long prompt and an empty negative one: the host can put them into one batch where it fills prompts up."""
    found, calls, trace = heard(family, 3.0, 4, family.negative)
    matched = [rows for name, rows in calls if name == "matched"]
    assert matched in ([1] * 8, [2] * 4) and [rows for name, rows in calls if name == "plain"] == matched
    assert all(not close(mine, plain, RUN) for mine, plain in zip(found["matched"], found["plain"]))
    # the call that comes first in an evaluation may be the negative one, which takes the other's match and has none yet at first
    assert trace.noise_levels == 4 and not trace.skipped and len(trace.snapshots) == 4
    assert trace.layers >= 2 * (2 * 4 - 1) if len(matched) == 8 else trace.layers == 2 * 4


def test_z_images_prompts_of_different_lengths_are_two_calls(z):
    assert [rows for _, rows in heard(z, 3.0, 2, z.negative)[1]] == [1] * 8
