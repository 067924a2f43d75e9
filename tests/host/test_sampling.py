"""The method inside the host's own sampling: random SD1.5-shaped UNet, real samplers."""

from __future__ import annotations

import contextlib
import gc
import math

import pytest
import torch
from closeness import RUN, close
from world import Bench, prompt, random_unet, same_weights, sample, weights

SAMPLERS = [("euler", "normal"), ("euler_ancestral", "normal"), ("heun", "simple"), ("dpm_2", "normal"),
            ("lms", "exponential"), ("dpmpp_2s_ancestral", "sgm_uniform"), ("dpmpp_2m", "karras"),
            ("dpmpp_2m_sde", "karras"), ("dpmpp_sde", "normal"), ("ddim", "ddim_uniform"), ("ddpm", "simple"),
            ("lcm", "sgm_uniform"), ("uni_pc", "normal")]


@pytest.fixture(scope="module")
def bench(pack) -> Bench:
    return Bench(pack, random_unet())


def test_the_plain_model_is_untouched_before_during_and_after(bench):
    before, plain = weights(bench.model), bench.sample()
    matched, _ = bench.apply()
    assert not torch.equal(bench.sample(matched), plain)
    assert torch.equal(bench.sample(), plain)
    assert same_weights(bench.model, before)
    assert bench.model.model.extra_conds.__func__ is type(bench.model.model).extra_conds
    assert not bench.model.model_options["transformer_options"].get("patches")


@pytest.mark.parametrize("sampler, scheduler", SAMPLERS)
def test_every_sampler_runs_and_differs_from_plain_only_with_strength(bench, sampler, scheduler):
    options = dict(sampler=sampler, scheduler=scheduler, seed=3)
    plain = bench.sample(**options)
    off, on = bench.apply(strength=0.0)[0], bench.apply()[0]
    assert torch.equal(bench.sample(off, **options), plain)
    first = bench.sample(on, **options)
    assert torch.isfinite(first).all() and not torch.equal(first, plain)
    assert torch.equal(bench.sample(on, **options), first), "the same seed twice must be bit-identical"


def test_the_first_call_of_a_run_never_sees_features_of_the_run_before(bench):
    matched, _ = bench.apply()
    alone = bench.sample(matched, seed=1, steps=1)
    bench.sample(matched, seed=2, steps=1)
    assert torch.equal(bench.sample(matched, seed=1, steps=1), alone)


def test_without_guidance_only_the_cond_row_comes_and_is_matched(bench):
    matched, trace = bench.apply()
    assert not torch.equal(bench.sample(matched, cfg=1.0), bench.sample(cfg=1.0))
    assert trace.last() is not None


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_a_batch_of_four_equals_four_singles(bench, cfg):
    matched, _ = bench.apply()
    batch = bench.sample(matched, batch=4, cfg=cfg)
    singles = torch.cat([bench.sample(matched, seed=item, cfg=cfg) for item in range(4)])
    # Float rounding differs between batch sizes and flips a few near-equal matches of random features: up to 4% of the effect.
    assert (batch - singles).norm() < 0.05 * (batch - bench.sample(batch=4, cfg=cfg)).norm()


@pytest.mark.parametrize("height, width", [(16, 24), (13, 17), (8, 40), (31, 9)])
def test_any_size_is_matched_against_a_reference_of_another_size(bench, height, width):
    matched, trace = bench.apply()
    out = bench.sample(matched, height=height, width=width)
    assert not torch.equal(out, bench.sample(height=height, width=width))
    assert trace.last().flow.shape[-2:] == (height, width) and not trace.skipped


@pytest.mark.parametrize("height, width", [(16, 24), (15, 9)])
def test_a_reference_of_any_size_serves(pack, bench, height, width):
    other = Bench(pack, bench.model, height=height, width=width)
    matched, trace = other.apply()
    assert not torch.equal(other.sample(matched), other.sample())
    assert trace.last().reference_size == (height, width)


def split_calls(model, order):
    """A clone whose cond and uncond rows come in calls of their own, in the given order."""
    clone = model.clone()

    def wrapper(apply_model, options):
        x, sigma, c, kinds = options["input"], options["timestep"], options["c"], options["cond_or_uncond"]
        size = x.shape[0] // len(kinds)
        out = [None] * len(kinds)
        for chunk in sorted(range(len(kinds)), key=lambda chunk: kinds[chunk] != order[0]):
            rows = slice(chunk * size, (chunk + 1) * size)
            arguments = {name: value[rows] if torch.is_tensor(value) else value for name, value in c.items()}
            arguments["transformer_options"] = {**c["transformer_options"], "cond_or_uncond": [kinds[chunk]]}
            out[chunk] = apply_model(x[rows], sigma[rows], **arguments)
        return torch.cat(out)

    clone.set_model_unet_function_wrapper(wrapper)
    return clone


def test_cond_and_uncond_in_calls_of_their_own_give_the_same_picture(bench):
    painted = bench.mask(target_mask=torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    matched, _ = bench.apply(mask=painted)
    together, apart = bench.sample(matched), bench.sample(split_calls(matched, order=[0]))
    assert (together - apart).norm() < 0.02 * (together - bench.sample()).norm()


def test_in_a_call_of_its_own_the_uncond_row_sees_the_foreground_of_all_layers(bench):
    """Beside the cond row it sees that of the layers run so far, as in the official code: close, not equal."""
    matched, _ = bench.apply(mask=bench.mask(otsu=False))
    together, apart = bench.sample(matched), bench.sample(split_calls(matched, order=[0]))
    assert 0 < (together - apart).norm() < 0.5 * (together - bench.sample()).norm()


def test_uncond_before_cond_works_with_the_map_of_the_step_before(bench):
    matched, trace = bench.apply()
    out = bench.sample(split_calls(matched, order=[1]))
    assert torch.isfinite(out).all() and trace.last() is not None


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_releases_the_run_and_leaves_the_model_as_it_was(bench, kind):
    before, plain = weights(bench.model), bench.sample()
    matched, _ = bench.apply()
    expected = bench.sample(matched)

    def stop(step, *_):
        if step == 3:
            raise kind("stopped")

    with pytest.raises(kind):
        bench.sample(matched, callback=stop)
    assert torch.equal(bench.sample(), plain) and same_weights(bench.model, before)
    assert torch.equal(bench.sample(matched), expected)


def runs_alive() -> int:
    gc.collect()
    return sum(type(thing).__name__ == "MatchingSession" and type(thing).__module__.endswith("dreammatcher.host.matching.session")
               for thing in gc.get_objects())


def test_nothing_of_a_run_is_alive_after_its_end_or_an_error(bench):
    matched, _ = bench.apply()
    alive = []

    def look(step, *_):
        alive.append(runs_alive())
        if step == 3:
            raise RuntimeError("stopped")

    with contextlib.suppress(RuntimeError):
        bench.sample(matched, callback=look)
    assert alive == [1] * 4 and runs_alive() == 0
    bench.sample(matched)
    assert runs_alive() == 0


def test_several_seeds_and_settings_share_the_reference_passes(bench, pack):
    fresh = bench.reference.with_store(pack.module("dreammatcher.matching.features").FeatureStore())
    matched, _ = bench.apply(reference=fresh)
    calls = count_calls(bench.model)
    with calls:
        bench.sample(matched, seed=1)
    first = calls.count
    with calls:
        bench.sample(matched, seed=2)
    assert first > calls.count - first == 6


def count_calls(model):
    """Counts forwards of the UNet."""
    class Counter:
        count = 0

        def __enter__(self):
            self.hook = model.model.diffusion_model.time_embed.register_forward_hook(self.add)
            return self

        def add(self, *_):
            self.count += 1

        def __exit__(self, *_):
            self.hook.remove()

    return Counter()


def test_prepared_features_save_every_reference_pass_and_change_nothing_at_stored_sigmas(bench, pack):
    options = pack.module("dreammatcher.matching.features").FeatureOptions()
    prepare = pack.module("dreammatcher.host.matching.invert").prepare_features
    with torch.inference_mode():
        prepared = prepare(bench.model, bench.reference, bench.mask(), options)
    run = dict(sampler="ddim", scheduler="ddim_uniform", steps=10)
    expected = bench.sample(bench.apply()[0], **run)
    calls = count_calls(bench.model)
    with calls:
        drawn = bench.sample(bench.apply(reference=prepared)[0], **run)
    assert calls.count == 10
    assert torch.equal(drawn, expected)


def test_a_sampler_that_visits_other_sigmas_snaps_to_the_nearest_in_log_distance(bench, pack):
    features = pack.module("dreammatcher.matching.features")
    prepare = pack.module("dreammatcher.host.matching.invert").prepare_features
    with torch.inference_mode():
        prepared = prepare(bench.model, bench.reference, bench.mask(), features.FeatureOptions())
    asked = []
    original = prepared.store.get
    prepared.store.get = lambda key, *where: asked.append(key[2]) or original(key, *where)
    matched, trace = bench.apply(reference=prepared)
    calls = count_calls(bench.model)
    with calls:
        bench.sample(matched, sampler="dpmpp_2m", scheduler="karras", steps=6)
    assert calls.count == 6, "the reference must not run again"
    visited = sorted(trace.snapshots)
    expected = {min(bench.reference.trajectory.sigmas, key=lambda stored: abs(math.log(stored / sigma))) for sigma in visited}
    assert expected <= set(asked) <= set(bench.reference.trajectory.sigmas)


def test_half_precision_features_take_half_the_room_and_stay_close(bench, pack):
    features = pack.module("dreammatcher.matching.features")
    prepare = pack.module("dreammatcher.host.matching.invert").prepare_features
    with torch.inference_mode():
        full, half = (prepare(bench.model, bench.reference, bench.mask(), features.FeatureOptions(dtype=dtype))
                      for dtype in (torch.float32, torch.float16))
    assert full.store.bytes() == 2 * half.store.bytes()
    run = dict(sampler="ddim", scheduler="ddim_uniform", steps=10)
    plain = bench.sample(**run)
    exact, close = (bench.sample(bench.apply(reference=r)[0], **run) for r in (full, half))
    assert (close - exact).norm() < 0.2 * (exact - plain).norm()


def test_a_lora_on_the_model_reaches_the_reference_pass_too(bench):
    key = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_v.weight"
    change = {key: (torch.eye(32) * 0.5,)}
    patched = bench.model.clone()
    assert patched.add_patches(change, 1.0) == [key]
    with_lora, _ = bench.apply(patched)
    first = bench.sample(with_lora)
    downstream, _ = bench.apply()
    bench.sample(downstream)
    late = downstream.clone()
    late.add_patches(change, 1.0)
    assert close(bench.sample(late), first, RUN), "features of the bare weights must not be reused"
    assert not torch.equal(first, bench.sample(downstream))


def test_a_painted_target_mask_limits_the_change_to_where_it_is_white(bench):
    left = torch.zeros(1, 1, 16, 16)
    left[..., :8] = 1
    matched, trace = bench.apply(mask=bench.mask(target_mask=left))
    bench.sample(matched)
    assert torch.equal(trace.last().target_mask.amax(0)[0], left[0, 0])


def test_a_prompt_of_two_chunks_beside_one_chunk_is_read_at_every_repeat(pack, bench):
    matched, trace = bench.apply()
    out = sample(matched, bench.target, prompt(9, 154))
    assert torch.isfinite(out).all() and trace.last().target_mask.max() == 1


def test_layers_the_model_does_not_have_are_refused_with_those_it_has(bench):
    with pytest.raises(ValueError, match="layers: '9' is not among this model's output blocks 0, 1, 2, 3"):
        bench.apply(layers="1, 9")


def test_fewer_layers_change_the_picture_less(bench):
    plain = bench.sample()
    few, all_of_them = (bench.sample(bench.apply(layers=layers)[0]) for layers in ("3", ""))
    assert 0 < (few - plain).norm() < (all_of_them - plain).norm()


def test_a_reference_of_another_family_is_refused(pack, bench):
    other = Bench(pack, random_unet(width=64))
    with pytest.raises(ValueError, match="another model family"):
        bench.apply(reference=other.reference)


@pytest.mark.parametrize("prediction", ["V_PREDICTION"])
def test_a_model_that_predicts_velocity_is_matched(pack, prediction):
    bench = Bench(pack, random_unet(prediction=prediction))
    matched, _ = bench.apply()
    out = bench.sample(matched)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample())


def test_the_default_start_is_the_papers_fourth_of_fifty_ddim_steps(bench):
    matched, trace = bench.apply(start=0.08)
    bench.sample(matched, sampler="ddim", scheduler="ddim_uniform", steps=50)
    assert len(trace.snapshots) == 46
