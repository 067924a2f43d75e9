"""Settings that SDXL's descendants (Illustrious, NoobAI, Pony) are drawn with: velocity, zero terminal SNR, rescaled guidance,
few-step distillates, second passes and crops. Random weights in SDXL's exact layout, through the host's own nodes."""

from __future__ import annotations

import math

import pytest
import torch
from test_nodes import quick
from world import Bench, family_unet, picture, sample

from harness.examples import full_control, node

STEPS = 12


def node_of(host, name: str):
    return host.nodes[name]()


def model_of(result):
    """The first output of a node of either kind of API."""
    return getattr(result, "result", result)[0]


@pytest.fixture(scope="module")
def zero_snr(host, pack):
    """(host, bench) of a velocity model with zero terminal SNR, as ModelSamplingDiscrete makes it."""
    model = model_of(node_of(host, "ModelSamplingDiscrete").patch(family_unet("SDXL"), "v_prediction", True))
    return host, Bench(pack, model, steps=STEPS, pooled=1280)


def test_its_schedule_begins_in_the_thousands_and_the_reference_follows_it(zero_snr):
    _, bench = zero_snr
    sampling = bench.model.get_model_object("model_sampling")
    path = bench.reference.trajectory
    assert float(sampling.sigma_max) > 4000 and path.sigmas[-1] > 500, "ddim_uniform ends a little below the last level"
    assert torch.isfinite(path.clean).all() and torch.isfinite(path.noise).all() and math.isfinite(bench.reference.psnr)
    noise = path.noise.std(dim=(1, 2, 3))
    assert 0.1 < noise[-1] < 10, "noise stays noise where sigma is in the thousands"


def test_between_its_noise_levels_the_reference_changes_smoothly(zero_snr):
    _, bench = zero_snr
    path = bench.reference.trajectory
    for low, high in zip(path.sigmas, path.sigmas[1:]):
        middle = path.at(math.sqrt(low * high)) / math.hypot(1, math.sqrt(low * high))
        ends = [path.at(sigma) / math.hypot(1, sigma) for sigma in (low, high)]
        assert (middle - ends[0]).norm() <= 1.5 * (ends[1] - ends[0]).norm() + 0.5 * ends[0].norm()
        assert torch.isfinite(middle).all()


@pytest.mark.parametrize("scheduler", ["normal", "simple", "sgm_uniform", "karras"])
def test_it_is_matched_with_any_scheduler(zero_snr, scheduler):
    _, bench = zero_snr
    matched, trace = bench.apply(start=0.08)
    options = dict(steps=8, scheduler=scheduler)
    out, plain = bench.sample(matched, **options), bench.sample(**options)
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert not trace.skipped and trace.why_nothing_matched() == ""


def test_start_is_a_share_of_its_schedule_not_of_sigma(zero_snr):
    """Sigma falls from thousands to tens within the first steps; the share counts steps."""
    _, bench = zero_snr
    matched, trace = bench.apply(start=0.5)
    bench.sample(matched, steps=10, scheduler="simple")
    assert 3 <= trace.noise_levels <= 6
    assert max(trace.snapshots) < 5


def test_features_made_ahead_at_few_noise_levels_serve_it(zero_snr, pack):
    _, bench = zero_snr
    options = pack.module("dreammatcher.matching.features").FeatureOptions(None, "cpu", None, False, 5)
    prepare = pack.module("dreammatcher.host.matching.invert").prepare_features
    with torch.inference_mode():
        ready = prepare(bench.model, bench.reference, bench.mask(), options)
    matched, trace = bench.apply(reference=ready)
    out = bench.sample(matched, steps=8)
    assert torch.isfinite(out).all() and trace.why_nothing_matched() == ""
    assert len(ready.store.sigmas) == 5 and max(ready.store.sigmas) > 100, "and the highest of them is far above 15"


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_rescaled_guidance_and_ours_go_together(zero_snr, pack, mode):
    host, bench = zero_snr
    matched, trace = bench.apply(start=0.08)
    rescaled = model_of(node_of(host, "RescaleCFG").patch(matched, 0.7))
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(1.0, 0.08, 1.0, mode)
    guided = pack.module("dreammatcher.host.matching.guide").guide(rescaled, settings)
    out = bench.sample(guided, steps=8)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample(rescaled, steps=8))
    assert trace.why_nothing_matched() == "" and not trace.skipped


@pytest.mark.parametrize("steps", [4, 6, 8])
@pytest.mark.parametrize("sampler, scheduler", [("lcm", "sgm_uniform"), ("euler", "sgm_uniform"), ("dpmpp_sde", "karras")])
def test_distillates_of_few_steps_without_negative_prompt_are_matched(host, pack, steps, sampler, scheduler):
    model = family_unet("SDXL")
    if sampler == "lcm":
        model = model_of(node_of(host, "ModelSamplingDiscrete").patch(model, "lcm", False))
    bench = Bench(pack, model, steps=STEPS, pooled=1280)
    matched, trace = bench.apply(start=0.08)
    options = dict(steps=steps, cfg=1.0, sampler=sampler, scheduler=scheduler)
    out = bench.sample(matched, **options)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample(**options))
    assert trace.why_nothing_matched() == "" and not trace.skipped


def test_a_second_pass_over_a_larger_picture_is_matched(zero_snr):
    _, bench = zero_snr
    matched, trace = bench.apply(start=0.08)
    first = bench.sample(matched, steps=6)
    larger = torch.nn.functional.interpolate(first, scale_factor=1.5, mode="bicubic")
    options = dict(steps=8, denoise=0.5, height=24, width=24, latent=larger)
    out = bench.sample(matched, **options)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample(**options)) and trace.why_nothing_matched() == ""


def test_a_crop_of_the_reference_serves_a_detailers_crop(zero_snr, pack):
    """A detailer samples an enlarged crop of the picture; a crop of the reference of another shape is its reference."""
    _, bench = zero_snr
    close = Bench(pack, bench.model, height=16, width=24, steps=STEPS, pooled=1280)
    matched, trace = bench.apply(reference=close.reference, start=0.08)
    mask = torch.zeros(1, 1, 24, 16)
    mask[..., 6:18, 4:12] = 1
    options = dict(steps=8, denoise=0.6, height=24, width=16, latent=picture(9, 24, 16))
    out = sample(matched, bench.target, bench.negative, **options)
    plain = sample(bench.model, bench.target, bench.negative, **options)
    assert torch.isfinite(out).all() and not torch.equal(out, plain) and trace.why_nothing_matched() == ""


def test_clip_skip_reaches_the_subject_and_the_matched_run(host, toybox):
    """Most of these models are drawn with CLIP skip 2."""
    text = "a photo of a cat at night"
    clip, = node_of(host, "CLIPSetLastLayer").set_last_layer(toybox[1], -2)
    with torch.inference_mode():
        stock, bare = (node_of(host, "CLIPTextEncode").encode(chosen, text)[0] for chosen in (clip, toybox[1]))
        ours, _ = node_of(host, "DreamMatcherSubject").encode(clip, text, "cat")["result"]
    assert torch.equal(ours[0][0], stock[0][0]) and not torch.equal(ours[0][0], bare[0][0])

    prompt = quick(full_control())
    prompt["20"] = node("CLIPSetLastLayer", clip=["1", 1], stop_at_clip_layer=-2)
    for number in ("4", "5", "6"):
        prompt[number]["inputs"]["clip"] = ["20", 0]
    result = host.run(prompt)
    plain, matched = (host.images(result, number)[0].tobytes() for number in ("15", "16"))
    assert plain != matched and result.ui["17"]["dreammatcher"][0]["steps"]
