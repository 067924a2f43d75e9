"""Graphs beyond one text-to-image sampler: parts of a schedule, masks, custom sigmas, few steps, mixed batches."""

from __future__ import annotations

import inspect

import pytest
import torch
from closeness import RUN, close
from world import Bench, picture, random_unet, sample


@pytest.fixture(scope="module")
def bench(pack) -> Bench:
    return Bench(pack, random_unet())


@pytest.mark.parametrize("denoise", [0.3, 0.6, 0.9])
def test_image_to_image_is_matched(bench, denoise):
    latent = picture(40)
    matched, trace = bench.apply(start=0.08)
    plain, out = (sample(model, bench.target, bench.negative, latent=latent, denoise=denoise, steps=6)
                  for model in (bench.model, matched))
    assert not torch.equal(out, plain) and trace.last() is not None


def test_an_inpainting_mask_keeps_what_it_protects(bench):
    import comfy.sample

    latent, mask = picture(41), torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    matched, trace = bench.apply()
    with torch.inference_mode():
        plain, out = (comfy.sample.sample(model, picture(42), 6, 5.0, "euler", "normal", bench.target, bench.negative,
                                          latent, noise_mask=mask, seed=0, disable_pbar=True) for model in (bench.model, matched))
    assert close(out[..., :8], latent[..., :8], RUN)
    assert not torch.equal(out[..., 8:], plain[..., 8:]) and trace.last() is not None


def custom(bench, model, sigmas, sampler):
    import comfy.sample
    import comfy.samplers

    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, picture(43), 5.0, comfy.samplers.sampler_object(sampler), sigmas, bench.target, bench.negative,
            torch.zeros(1, 4, 16, 16), disable_pbar=True, seed=3)


SIGMAS = {
    "coarse": [14.6, 5.0, 1.3, 0.4, 0.0],
    "ends above zero": [9.0, 4.0, 2.0, 1.0],
    "goes up again (restart)": [14.6, 3.0, 0.6, 2.0, 0.8, 0.2, 0.0],
    "above the model's range": [80.0, 14.6, 2.0, 0.0],
    "below the trajectory": [0.5, 0.03, 0.01, 0.0],
}


@pytest.mark.parametrize("name", SIGMAS)
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_arbitrary_sigmas_are_served(bench, name, sampler):
    matched, trace = bench.apply()
    sigmas = torch.tensor(SIGMAS[name])
    plain, out = (custom(bench, model, sigmas, sampler) for model in (bench.model, matched))
    if torch.isfinite(plain).all():
        assert torch.isfinite(out).all()
    assert not torch.equal(out, plain) and not trace.skipped


@pytest.mark.parametrize("steps", [4, 6, 8])
@pytest.mark.parametrize("sampler, cfg", [("lcm", 1.0), ("euler", 1.5), ("euler_ancestral", 1.0)])
def test_few_step_models_are_matched_from_the_second_step_on(bench, steps, sampler, cfg):
    matched, trace = bench.apply(start=0.08)
    options = dict(steps=steps, sampler=sampler, scheduler="sgm_uniform", cfg=cfg)
    assert not torch.equal(bench.sample(matched, **options), bench.sample(**options))
    assert len(trace.snapshots) == steps - 1


def test_a_single_step_has_nothing_to_match_and_stays_plain(bench):
    matched, trace = bench.apply()
    assert torch.equal(bench.sample(matched, steps=1), bench.sample(steps=1))
    assert trace.last() is None


def test_start_and_end_limit_the_steps_that_are_matched(bench):
    counts = []
    for start, end in ((0.0, 1.0), (0.5, 1.0), (0.0, 0.5)):
        matched, trace = bench.apply(start=start, end=end)
        bench.sample(matched, steps=12, scheduler="sgm_uniform")
        counts.append(len(trace.snapshots))
    assert counts[0] == 11 and 0 < counts[1] < 11 and 0 < counts[2] < 11 and abs(counts[1] + counts[2] - 11) <= 1


def test_every_picture_of_a_batch_has_a_match_of_its_own(bench):
    matched, trace = bench.apply()
    bench.sample(matched, batch=3)
    flow = trace.last().flow
    assert flow.shape[0] == 3 and not torch.equal(flow[0], flow[1])


def test_a_schedule_in_two_samplers_goes_on_where_the_first_stopped(bench, host):
    """KSamplerAdvanced with leftover noise: the second sampler begins a run of its own."""
    node = host.nodes["KSamplerAdvanced"]()
    matched, trace = bench.apply()
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    common = (5.0, "euler", "normal", bench.target, bench.negative)
    with torch.inference_mode():
        half = node.sample(matched, "enable", 5, 8, *common, latent, 0, 4, "enable")[0]
        first = len(trace.snapshots)
        whole = node.sample(matched, "disable", 5, 8, *common, half, 4, 8, "disable")[0]
    assert torch.isfinite(whole["samples"]).all() and first == 3 and len(trace.snapshots) == 3


def test_a_guider_whose_first_prompt_is_the_negative_is_matched_by_name(bench, host):
    """DualCFGGuider hands the host negative, middle and positive, in this order."""
    if "DualCFGGuider" not in host.nodes:
        pytest.skip("this host has no DualCFGGuider")
    import comfy.samplers
    from world import prompt

    def run(model):
        node = host.nodes["DualCFGGuider"]
        arguments = dict(model=model, cond1=bench.target, cond2=prompt(31), negative=bench.negative, cfg_conds=4.0,
                         cfg_cond2_negative=2.0)
        if hasattr(node, "execute"):
            arguments |= {"style": "regular"} if "style" in inspect.signature(node.execute).parameters else {}
            result = node.execute(**arguments)
        else:
            result = getattr(node(), node.FUNCTION)(**arguments)
        guider = result[0] if isinstance(result, tuple) else result.args[0]
        with torch.inference_mode():
            return guider.sample(picture(50), torch.zeros(1, 4, 16, 16), comfy.samplers.sampler_object("euler"),
                                 torch.tensor([14.6, 5.0, 1.3, 0.0]), disable_pbar=True, seed=1)

    matched, trace = bench.apply()
    runs = []
    holder = matched.model_options["transformer_options"]["dreammatcher"][0].holder
    original = holder.session
    holder.session = lambda: runs.append(original()) or runs[-1]
    assert not torch.equal(run(matched), run(bench.model))
    assert runs[-1].seen.served == {("cond", 0), ("uncond", 0)} and len(runs[-1].rows.negatives) == 2
    assert trace.last() is not None and not trace.skipped


def test_a_restart_with_fresh_noise_at_one_sigma_is_an_evaluation_like_any_other(bench):
    import comfy.samplers

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        ones = x.new_ones(len(x))
        generator = torch.Generator().manual_seed(1)
        for sigma, following in zip(sigmas, sigmas[1:]):
            for repeat in range(2 if float(sigma) == 2.0 else 1):
                if repeat:
                    x = torch.randn(x.shape, generator=generator) * sigma
                clean = model(x, sigma * ones, **extra_args)
            x = clean + (x - clean) / sigma * following
        return x

    import comfy.sample

    matched, trace = bench.apply()
    sigmas = torch.tensor([14.6, 5.0, 2.0, 1.5, 1.2, 0.9, 0.6, 0.3, 0.0])
    with torch.inference_mode():
        out = comfy.sample.sample_custom(matched, picture(51), 5.0, comfy.samplers.KSAMPLER(sampler), sigmas, bench.target,
                                         bench.negative, torch.zeros(1, 4, 16, 16), disable_pbar=True, seed=1)
    assert torch.isfinite(out).all() and not trace.skipped
    assert [round(sigma, 1) for sigma in sorted(trace.snapshots, reverse=True)] == [5.0, 2.0, 1.5, 1.2, 0.9, 0.6, 0.3]
