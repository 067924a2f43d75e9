"""ViCo in the host's sampling: the picture looks at its reference, beside everything else, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import RUN, close
from looking import SIZE, Looking
from test_composition import PACKS, RANDOM, tiny_controlnet
from world import Bench, family_unet, picture, prompt, random_unet, same_weights, sample, weights


@pytest.fixture(scope="module")
def looking(pack) -> Looking:
    return Looking(pack, random_unet())


@pytest.fixture
def calls(looking):
    """Batch sizes of the UNet's forwards."""
    sizes = []
    hook = looking.model.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


def test_the_picture_depends_on_the_reference_and_nothing_is_left_on_the_model(looking):
    before, plain = weights(looking.model), looking.sample()
    model, trace = looking.apply()
    seen = looking.sample(model)
    assert torch.isfinite(seen).all() and not torch.equal(seen, plain) and not trace.skipped
    assert not torch.equal(looking.sample(looking.apply(reference=picture(8, 16, 24))[0]), seen)
    assert same_weights(looking.model, before) and torch.equal(looking.sample(), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in looking.model.model.modules())
    # sites of four steps, cond and uncond in one call or in two
    assert trace.looks in (4 * len(looking.blocks), 8 * len(looking.blocks))
    assert len(trace.masks) == 4 and {mask.shape for mask in next(iter(trace.masks.values())).values()} <= {(8, 12), (16, 24)}


def test_without_strength_and_outside_of_its_share_it_is_bit_for_bit_the_plain_model(looking, monkeypatch, pack):
    plain, said = looking.sample(), []
    monkeypatch.setattr(pack.module("dreammatcher.host.vico.apply"), "tell", said.append)
    assert torch.equal(looking.sample(looking.apply(strength=0.0)[0]), plain) and not said
    assert torch.equal(looking.sample(looking.apply(start=0.0, end=0.0)[0]), plain)
    assert len(said) == 1 and "no step lies between start and end" in said[0]


def test_strength_goes_from_the_plain_picture_to_the_paper_s(looking):
    plain, full = looking.sample(), looking.sample(looking.apply()[0])
    little = looking.sample(looking.apply(strength=0.05)[0])
    assert 0 < (little - plain).norm() < (full - plain).norm()
    first = looking.sample(looking.apply(end=0.5)[0])
    assert not torch.equal(first, plain) and not torch.equal(first, full)


def test_the_second_seed_pays_for_no_reference_and_gives_the_same_as_alone(looking, calls):
    model, _ = looking.apply()
    looking.sample(model, seed=1)
    first = len(calls)
    again = looking.sample(model, seed=2)
    plain_calls = len(calls) - first
    calls.clear()
    looking.sample(seed=2)
    assert plain_calls == len(calls) < first
    assert torch.equal(again, looking.sample(looking.apply()[0], seed=2))


def test_a_batch_equals_its_pictures_one_by_one_and_shares_the_reference(looking, calls):
    both = looking.sample(looking.apply()[0], batch=2, seed=5)
    references = [count for count in calls if count == 1]
    assert len(references) == 2 * SIZE["steps"], "one pass for each prompt and noise level"
    singles = torch.cat([looking.sample(looking.apply()[0], seed=5 + item) for item in range(2)])
    assert close(both, singles, RUN)


def test_the_reference_of_the_sample_s_size_may_run_in_one_batch_with_it(pack, looking):
    """Lock-step, as the official code has it, against a call of its own: the same states."""
    base, sites = looking.model.model, pack.module("dreammatcher.host.vico.sites")
    unet, context = base.diffusion_model, looking.positive[0][0]
    x, reference, times = picture(1), picture(2), torch.tensor([500.0])

    def call(rows):
        return unet(rows.clone(), times.expand(len(rows)), context=context.expand(len(rows), -1, -1),
                    transformer_options={"cond_or_uncond": [0]})

    with torch.no_grad():
        alone = sites.look(looking.blocks, lambda: call(reference))
        together = sites.look(looking.blocks, lambda: call(torch.cat([x, reference])))
    for site in looking.blocks:
        assert close(together[site].states[1:], alone[site].states, RUN)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "dpm_2_ancestral", "lcm"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_every_sampler_and_guidance_scale_works(looking, sampler, cfg):
    out = looking.sample(looking.apply()[0], sampler=sampler, cfg=cfg)
    assert torch.isfinite(out).all() and not torch.equal(out, looking.sample(sampler=sampler, cfg=cfg))


@pytest.mark.parametrize("name", PACKS)
def test_a_pack_works_in_front_and_behind(host, looking, name):
    patched = PACKS[name](host, looking.model)
    alone = looking.sample(patched)
    front, trace = looking.apply(patched)
    behind = PACKS[name](host, looking.apply()[0])
    results = [looking.sample(model) for model in (front, behind)]
    for out in results:
        assert torch.isfinite(out).all() and not torch.equal(out, alone)
    assert not trace.skipped
    if name not in RANDOM:
        assert close(*results, roundings=RUN)


def test_beside_dreammatcher_both_act_in_either_order(pack):
    bench = Bench(pack, random_unet(), height=32, width=32, steps=6)
    looking = Looking(pack, bench.model)
    looking.positive, looking.negative = bench.target, bench.negative
    matched, seen = bench.sample(bench.apply()[0], **SIZE), bench.sample(looking.apply()[0], **SIZE)
    first, trace = bench.apply(looking.apply()[0])
    second, looks = looking.apply(bench.apply()[0])
    results = [bench.sample(model, **SIZE) for model in (first, second)]
    assert close(*results, roundings=RUN)
    assert not torch.equal(results[0], matched) and not torch.equal(results[0], seen)
    assert trace.last() is not None and not trace.skipped and looks.looks and not looks.skipped


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_guidance_works_on_top_of_both(pack, mode):
    bench = Bench(pack, random_unet(), height=32, width=32, steps=6)
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(0.3 if mode == "fast" else 0.01, 0.0, 1.0, mode)
    with torch.inference_mode():
        matched, trace = bench.apply(Looking(pack, bench.model).apply()[0])
        guided = pack.module("dreammatcher.host.matching.guide").guide(matched, settings)
    out = bench.sample(guided, **SIZE)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample(matched, **SIZE)) and not trace.skipped


def test_control_reaches_the_picture_and_not_the_reference(host, pack):
    looking = Looking(pack, family_unet("SD1.5"))
    hint = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(8))
    controlled = host.nodes["ControlNetApply"]().apply_controlnet(looking.positive, tiny_controlnet(), hint, 0.8)[0]
    model, _ = looking.apply()
    out, alone = looking.sample(model, controlled), looking.sample(looking.apply()[0])
    assert torch.isfinite(out).all() and not torch.equal(out, alone)
    assert not torch.equal(out, looking.sample(positive=controlled))
    assert torch.equal(looking.sample(model), alone), "what was seen beside a control must serve without it"


def test_a_prompt_s_own_mark_says_where_the_word_is_and_a_prompt_without_one_is_told_about(pack, looking):
    key = pack.module("dreammatcher.host.text.conditioning").SUBJECT_KEY
    marked = [[looking.positive[0][0], {**looking.positive[0][1], key: looking.subject}]]
    by_input = looking.sample(looking.apply()[0])
    model, trace = looking.apply(subject=False)
    assert torch.equal(looking.sample(model, marked), by_input) and not trace.skipped
    whole = looking.sample(model)
    assert not torch.equal(whole, by_input)
    assert len(trace.skipped) == 1 and "does not say where its subject's word stands" in trace.skipped[0]
    assert all(mask.all() for masks in trace.masks.values() for mask in masks.values())


def test_of_several_prompts_those_about_the_subject_look(pack, host, looking):
    key = pack.module("dreammatcher.host.text.conditioning").SUBJECT_KEY
    area = host.nodes["ConditioningSetArea"]()
    left = area.append([[looking.positive[0][0], {key: looking.subject}]], 128, 256, 0, 0, 1.0)[0]
    right = area.append(prompt(11), 128, 256, 128, 0, 1.0)[0]
    plain = looking.sample(positive=left + right, steps=1, sampler="euler")
    out = looking.sample(looking.apply(subject=False)[0], left + right, steps=1, sampler="euler")
    assert torch.isfinite(out).all() and not torch.equal(out[..., :14], plain[..., :14])
    assert close(out[..., 18:], plain[..., 18:], RUN), "the other prompt's half is as it was"


def test_long_prompts_and_prompts_of_different_length_work(pack, looking):
    key = pack.module("dreammatcher.host.text.conditioning").SUBJECT_KEY
    long = [[prompt(13, 154)[0][0], {key: replace(looking.subject, columns=(90,), tokens=154)}]]
    model, trace = looking.apply()
    out = sample(model, long, looking.negative, **SIZE)
    assert torch.isfinite(out).all() and not trace.skipped


def test_several_pictures_are_looked_at_together(looking):
    two = looking.sample(looking.apply(reference=torch.cat([picture(7, 16, 24), picture(8, 16, 24)]))[0])
    assert torch.isfinite(two).all()
    assert not any(torch.equal(two, looking.sample(looking.apply(reference=picture(seed, 16, 24))[0])) for seed in (7, 8))


def test_a_model_of_another_kind_is_refused_with_its_reason(pack, looking):
    with pytest.raises(ValueError, match="vico: .*learned on another kind of model"):
        looking.apply(family_unet("SD1.5"))
    with pytest.raises(ValueError, match="reference: its latent has 16 channels, this model takes 4"):
        looking.apply(reference=torch.zeros(1, 16, 8, 8))


def test_an_interrupt_in_the_reference_s_pass_leaves_no_hook(looking, monkeypatch, pack):
    session = pack.module("dreammatcher.host.vico.session")
    monkeypatch.setattr(session, "subject_mask", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        looking.sample(looking.apply()[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in looking.model.model.modules())
