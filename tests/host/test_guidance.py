"""Guidance in the host's sampling: the gradient is right, the picture comes nearer, nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from kept_memory import Kept, kept_for_the_gradient
from world import Bench, noise_following_unet, random_unet, same_weights, weights


@pytest.fixture(scope="module")
def bench(pack) -> Bench:
    return Bench(pack, random_unet())


@pytest.fixture(scope="module")
def guided(pack, bench):
    def make(model=None, **settings):
        chosen = pack.module("dreammatcher.matching.guidance").GuidanceSettings(**{"start": 0.0, **settings})
        return pack.module("dreammatcher.host.matching.guide").guide(model or bench.apply()[0], chosen)
    return make


def in_inference_mode(model):
    """The weights as a loader node leaves them: inference tensors."""
    with torch.inference_mode():
        for name, value in [*model.model.diffusion_model.named_parameters()]:
            owner, _, last = name.rpartition(".")
            setattr(model.model.diffusion_model.get_submodule(owner), last,
                    torch.nn.Parameter(value.clone(), requires_grad=False))
    return model


@pytest.mark.parametrize("prediction", ["EPS", "V_PREDICTION"])
def test_the_gradient_equals_finite_differences_with_attention_held_constant(pack, prediction):
    gradients = pack.module("dreammatcher.host.model.gradients")
    guide = pack.module("dreammatcher.host.matching.guide")
    model = in_inference_mode(random_unet(prediction=prediction))
    base, sigma = model.model, 1.7
    generator = torch.Generator().manual_seed(5)
    x, slopes = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    context, t = torch.randn(1, 77, 96, generator=generator), torch.tensor([sigma])
    kept: dict = {}

    def constant(n, extra, which):
        key = (which, *extra["block"])
        return kept.setdefault(key, n.detach().clone())

    constants = {"patches": {"attn1_output_patch": [lambda n, extra: constant(n, extra, 1)],
                             "attn2_output_patch": [lambda n, extra: constant(n, extra, 2)]}, "cond_or_uncond": [0]}
    with torch.inference_mode():
        base.apply_model(x, t, c_crossattn=context, transformer_options={**constants})
        step = 1e-2

        def loss(moved):
            estimate = base.apply_model(moved, t, c_crossattn=context, transformer_options={**constants})
            beside = base.model_sampling.calculate_denoised(t, torch.zeros_like(moved), moved)
            return ((estimate - beside) * slopes).sum().double()

        numbers = torch.randperm(x.numel(), generator=generator)[:12]
        expected = []
        for number in numbers:
            change = torch.zeros(x.numel())
            change[number] = step
            change = change.view_as(x)
            expected.append((loss(x + change) - loss(x - change)).item() / (2 * step))

        def detach(n, context, value, extra):
            return n.detach(), context.detach(), value.detach()

        def gradient(leaf, ready):
            time, text = ready
            options = {"patches": {"attn1_patch": [detach], "attn2_patch": [detach]}, "cond_or_uncond": [0]}
            clean = base.apply_model(leaf, time, c_crossattn=text, transformer_options=options)
            return guide.prediction_gradient(base, clean, leaf, time, slopes)

        computed = gradients.with_gradients(base, x, (t, context), gradient)
    assert all(value.is_inference() for value in base.diffusion_model.parameters())
    assert torch.allclose(computed.flatten()[numbers], torch.tensor(expected), rtol=0.02, atol=0.01 * computed.abs().max().item())


def test_activations_are_recomputed_to_the_same_gradient_with_half_the_memory(pack, monkeypatch):
    """Memory counts what autograd saves: the blocks' inputs too, which are kept instead of what they compute."""
    from contextlib import nullcontext

    gradients, guide = pack.module("dreammatcher.host.model.gradients"), pack.module("dreammatcher.host.matching.guide")
    base = in_inference_mode(random_unet()).model
    generator = torch.Generator().manual_seed(5)
    x, slopes, context = (torch.randn(shape, generator=generator) for shape in ((2, 4, 16, 16), (2, 4, 16, 16), (2, 77, 96)))

    def detach(n, context, value, extra):
        return n.detach(), context.detach(), value.detach()

    def bytes_and_gradient():
        found: list[Kept] = []

        def gradient(leaf, ready):
            options = {"patches": {"attn1_patch": [detach], "attn2_patch": [detach]}, "cond_or_uncond": [0, 1]}
            with kept_for_the_gradient() as kept:
                clean = base.apply_model(leaf, ready[0], c_crossattn=ready[1], transformer_options=options)
            found.append(kept)
            return guide.prediction_gradient(base, clean, leaf, ready[0], slopes)

        with torch.inference_mode():
            computed = gradients.with_gradients(base, x, (torch.tensor([1.7, 1.7]), context), gradient)
        return found[-1].beside(base.parameters()), computed

    small, recomputed = bytes_and_gradient()
    monkeypatch.setattr(gradients, "recomputed", lambda unet: nullcontext())
    large, wanted = bytes_and_gradient()
    assert close(recomputed, wanted, RUN) and small < 0.5 * large, (small, large)


def test_no_hook_stays_after_an_error(pack):
    gradients = pack.module("dreammatcher.host.model.gradients")
    base = random_unet().model

    def fail(*_):
        assert any(module._forward_hooks for module in base.modules())
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        gradients.with_gradients(base, torch.zeros(1, 4, 8, 8), (), fail)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


def distances(pack, sample):
    """Masked distance of the estimate from its goal before and after the guidance of every step."""
    guide, guidance = pack.module("dreammatcher.host.matching.guide"), pack.module("dreammatcher.matching.guidance")
    seen = []
    lead, corrected = guide.lead, guide._corrected

    def watch_lead(clean, warped, trust, weight):
        led = lead(clean, warped, trust, weight)
        seen.append([guidance.masked_distance(x, warped, trust).mean().item() for x in (clean, led)])
        return led

    def watch_corrected(clean, change, goals):
        led = corrected(clean, change, goals)
        for goal in goals:
            seen.append([guidance.masked_distance(x[goal.rows], goal.warped, goal.trust).mean().item() for x in (clean, led)])
        return led

    guide.lead, guide._corrected = watch_lead, watch_corrected
    try:
        sample()
    finally:
        guide.lead, guide._corrected = lead, corrected
    return torch.tensor(seen)


def test_every_step_in_mode_fast_comes_nearer_to_the_warped_reference(pack, bench):
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(0.2, 0.0, 1.0, "fast")
    before, after = distances(pack, lambda: bench.sample(pack.module("dreammatcher.host.matching.guide").guide(
        bench.apply()[0], settings), steps=8)).unbind(1)
    assert len(before) >= 7 and (after < before).all()


@pytest.mark.parametrize("mode, weight", [("fast", 0.2), ("paper", 3.2)])
def test_every_step_comes_nearer_where_the_prediction_follows_the_noise(pack, mode, weight):
    """On weights that are merely random mode paper has no such property: its gradient goes through the prediction alone."""
    bench = Bench(pack, noise_following_unet())
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(weight, 0.0, 1.0, mode)
    before, after = distances(pack, lambda: bench.sample(pack.module("dreammatcher.host.matching.guide").guide(
        bench.apply()[0], settings), steps=8)).unbind(1)
    assert len(before) >= 7 and (after <= before + 1e-6).all() and after.sum() < 0.98 * before.sum()


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_on_a_trained_model_guided_steps_come_nearer_to_the_warped_reference(host, pack, mode):
    prompt = host_graph(mode)
    before, after = distances(pack, lambda: check(host.run(prompt))).unbind(1)
    assert len(before) >= 9
    assert (after <= before + 1e-6).float().mean() > 0.9 and after.sum() < before.sum()


def check(result) -> None:
    assert result.success, result.error()


def host_graph(mode: str) -> dict:
    from harness.examples import full_control, node

    prompt = full_control()
    for number in ("7", "11", "12"):
        prompt[number]["inputs"]["steps"] = 10
    prompt["9"]["inputs"]["start"] = 0.08
    prompt["20"] = node("DreamMatcherGuidance", model=["9", 0], weight=1.0, start=0.08, end=1.0, mode=mode)
    prompt["12"]["inputs"]["model"] = ["20", 0]
    return prompt


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_guidance_changes_the_picture_and_leaves_nothing_behind(bench, guided, mode):
    before, plain = weights(bench.model), bench.sample()
    matched = bench.apply()[0]
    unguided = bench.sample(matched)
    model = guided(matched, mode=mode, weight=0.5)
    first = bench.sample(model)
    assert torch.isfinite(first).all() and not torch.equal(first, unguided)
    assert torch.equal(bench.sample(model), first), "the same seed twice must be bit-identical"
    assert torch.equal(bench.sample(matched), unguided) and torch.equal(bench.sample(), plain)
    assert same_weights(bench.model, before)
    assert all(value.grad is None for value in bench.model.model.diffusion_model.parameters())


def test_weight_zero_is_the_unguided_model_bit_for_bit(bench, guided):
    matched = bench.apply()[0]
    for mode in ("fast", "paper"):
        assert torch.equal(bench.sample(guided(matched, mode=mode, weight=0.0)), bench.sample(matched))


def test_guidance_outside_its_span_changes_nothing(bench, guided):
    matched = bench.apply()[0]
    late = guided(matched, start=0.999, end=1.0)
    assert torch.equal(bench.sample(late, scheduler="simple", steps=3), bench.sample(matched, scheduler="simple", steps=3))


@pytest.mark.parametrize("options", [
    {"cfg": 1.0}, {"batch": 3}, {"height": 13, "width": 20}, {"sampler": "heun"}, {"sampler": "dpmpp_2s_ancestral"}])
@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_guidance_takes_any_batch_size_and_sampler(bench, guided, mode, options):
    matched = bench.apply()[0]
    out = bench.sample(guided(matched, mode=mode, weight=0.5), **options)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample(matched, **options))


@pytest.mark.parametrize("sampler, evaluations", [("euler", 6), ("heun", 11), ("dpm_2", 11)])
@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_every_evaluation_but_the_first_is_led_also_two_at_one_noise_level(bench, guided, pack, monkeypatch, mode, sampler,
                                                                          evaluations):
    guide, led = pack.module("dreammatcher.host.matching.guide"), []
    name = "lead" if mode == "fast" else "prediction_gradient"
    original = getattr(guide, name)
    monkeypatch.setattr(guide, name, lambda *arguments: led.append(1) or original(*arguments))
    bench.sample(guided(mode=mode, weight=0.1), sampler=sampler, scheduler="simple")
    assert len(led) == evaluations - 1


def test_a_model_whose_weights_lie_elsewhere_is_guided_in_mode_fast_with_one_message(bench, guided, pack, monkeypatch):
    gradients = pack.module("dreammatcher.host.model.gradients")
    matched, trace = bench.apply()
    fast = bench.sample(guided(matched, mode="fast"))
    monkeypatch.setattr(gradients, "_computes", lambda value: False)
    assert torch.equal(bench.sample(guided(matched, mode="paper")), fast)
    assert len(trace.skipped) == 1 and "mode paper is not possible here" in trace.skipped[0]


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("scheduler", ["simple", "karras", "sgm_uniform"])
@pytest.mark.parametrize("weight", [1.0, 20.0])
def test_few_steps_and_any_weight_are_guided_without_a_message(bench, guided, steps, scheduler, weight):
    matched, trace = bench.apply()
    options = dict(steps=steps, scheduler=scheduler)
    out = bench.sample(guided(matched, mode="paper", weight=weight), **options)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample(matched, **options)) and not trace.skipped


def test_a_gradient_that_explodes_leaves_the_step_unguided_with_one_message(bench, guided, pack, monkeypatch):
    guide = pack.module("dreammatcher.host.matching.guide")
    matched, trace = bench.apply()
    unguided = bench.sample(matched)
    monkeypatch.setattr(guide, "correction", lambda gradient, *_: gradient * torch.nan)
    assert torch.equal(bench.sample(guided(matched, mode="paper")), unguided)
    assert len(trace.skipped) == 1 and "not finite" in trace.skipped[0]


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_a_model_without_apply_goes_on_as_it_is_with_a_note(bench, guided, caplog, mode):
    assert guided(bench.model, mode=mode) is bench.model
    assert caplog.text.count("connect the MODEL output of Apply (DreamMatcher)") == 1


def test_uncond_rows_that_come_first_are_led_and_taken_for_whole_pictures(pack, bench):
    from test_sampling import split_calls

    matched, trace = bench.apply()
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(1.0, 0.0, 1.0, "paper")
    guided = pack.module("dreammatcher.host.matching.guide").guide(matched, settings)
    out = bench.sample(split_calls(guided, order=[1]))
    assert not torch.equal(out, bench.sample(split_calls(matched, order=[1])))
    assert not any("area" in reason for reason in trace.skipped), trace.skipped


def test_mode_paper_on_a_compiled_model_gives_the_same_picture_and_compiles_nothing_at_every_step(bench, guided, no_graphs):
    import torch._dynamo.utils as dynamo

    led = guided(mode="paper")
    expected = bench.sample(led)
    before = dynamo.counters["stats"]["unique_graphs"]
    compiled = led.clone()
    compiled.add_object_patch("diffusion_model", torch.compile(bench.model.model.diffusion_model, backend="eager"))
    first = bench.sample(compiled)
    graphs = dynamo.counters["stats"]["unique_graphs"]
    assert graphs > before and close(first, expected, RUN)
    bench.sample(compiled)
    assert dynamo.counters["stats"]["unique_graphs"] == graphs
