"""Transformers matched beside other packs and nodes, what is refused of them, and what a run says."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from transformers_world import (
    SIGMA,
    SIZE,
    applied,
    bench_of,
    drawn,
    evaluated,
    last_block,
    latent_of,
    made,
    other_reference,
    reference_of,
)
from world import randomised


def test_a_block_that_runs_without_the_hosts_options_is_told(family):
    """As TeaCache calls the blocks of Flux. The others are matched."""
    place = last_block(family.model)
    deaf = family.model.clone()
    forward = deaf.get_model_object(place)
    deaf.add_object_patch(place, lambda *given, transformer_options=None, **named: forward(*given, **named))
    matched, trace = applied(family, other_reference(family), model=deaf)
    plain = drawn(family.model, family.longer, family.negative)
    assert not close(drawn(matched, family.longer, family.negative), plain, RUN) and trace.layers
    assert len(trace.skipped) == 1 and "options for attention, so nothing is matched there: 4." in trace.skipped[0]


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_holder_of_the_slot_still_runs_and_changes_nothing(family, order):
    heard = []

    def hold(func, *given, **named):
        heard.append(named["transformer_options"].get("block_index"))
        return func(*given, **named)

    def held(model):
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = hold
        return clone

    matched, _ = applied(family, other_reference(family))
    alone = drawn(matched, family.longer, family.negative)
    both = applied(family, other_reference(family), model=held(family.model))[0] if order == "before" else held(matched)
    heard.clear()
    assert torch.equal(drawn(both, family.longer, family.negative), alone)
    numbered = family.backbone.numbers.name != "SLOTS"  # there the numbers are ours, and the host tells none
    with_us = [number if numbered else None for number in heard]
    heard.clear()
    drawn(held(family.model), family.longer, family.negative)
    assert heard and with_us == heard, "it is called for every attention of the run, and in no pass over the reference"


def test_what_works_in_unets_alone_and_layers_that_are_not_there_are_refused(z):
    with pytest.raises(ValueError, match="keys and values replaced.* works in a UNet alone"):
        applied(z, other_reference(z), injection="keys and values replaced")
    with pytest.raises(ValueError, match="layers: '0' is not among this model's matched blocks 2, 3, 4"):
        applied(z, other_reference(z), layers="0")


def test_guidance_leads_in_closed_form_and_mode_paper_goes_fast_with_a_note(family, caplog):
    guidance, guide = (family.pack.module(f"dreammatcher.{name}") for name in ("matching.guidance", "host.matching.guide"))
    matched, _ = applied(family, other_reference(family))
    pictures = {mode: drawn(guide.guide(matched, guidance.GuidanceSettings(mode=mode, start=0.0)), family.longer,
                            family.negative, cfg=3.0) for mode in ("inside", "fast", "paper")}
    assert torch.equal(pictures["paper"], pictures["fast"])
    assert any("this model is guided in mode fast" in record.getMessage() for record in caplog.records)
    assert not close(pictures["fast"], drawn(matched, family.longer, family.negative, cfg=3.0), RUN)


def test_a_reference_is_saved_and_loaded_with_its_process(z, tmp_path):
    reference = z.pack.module("dreammatcher.matching.reference")
    made_here = other_reference(z)
    reference.save(made_here, tmp_path / "reference.safetensors")
    loaded = reference.load(tmp_path / "reference.safetensors")
    assert loaded.trajectory.process.name == "CONST"
    assert torch.equal(*(drawn(applied(z, each)[0], z.longer, z.negative) for each in (made_here, loaded)))


def test_steps_that_easycache_skips_are_no_error(z):
    from comfy_extras.nodes_easycache import EasyCacheNode

    with torch.inference_mode():
        lazy = EasyCacheNode.execute(z.model, 1.5, 0.1, 1.0, False).result[0]
    matched, trace = applied(z, other_reference(z), model=lazy)
    cached = drawn(matched, z.longer, z.negative, steps=10)
    assert torch.isfinite(cached).all() and trace.layers and not trace.skipped
    assert trace.layers < 3 * 9, "it skipped some"


def test_a_compiled_model_gives_the_same_picture(z, no_graphs):
    from test_never_silently_plain import compiled

    plain, expected = drawn(z.model, z.longer, z.negative), drawn(applied(z, other_reference(z))[0], z.longer, z.negative)
    assert not close(plain, expected, RUN)
    for _ in range(2):
        assert close(drawn(compiled(z.model), z.longer, z.negative), plain, RUN)
        matched, trace = applied(z, other_reference(z))
        assert close(drawn(compiled(matched), z.longer, z.negative), expected, RUN) and not trace.skipped


def test_a_call_that_another_pack_makes_of_its_own_picture_is_left_alone(z):
    from comfy.patcher_extension import WrappersMP

    def with_a_reference(executor, x, *rest, **named):
        executor(torch.ones_like(x), *rest, **named)
        return executor(x, *rest, **named)

    expected = drawn(applied(z, other_reference(z))[0], z.longer, z.negative)
    matched, trace = applied(z, other_reference(z))
    matched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "pack", with_a_reference)
    assert torch.equal(drawn(matched, z.longer, z.negative), expected) and not trace.skipped


def test_two_plans_on_one_model_are_both_matched(z):
    matched, first = applied(z, other_reference(z))
    both, second = applied(z, other_reference(z), model=matched)
    drawn(both, z.longer, z.negative, cfg=3.0)
    assert first.layers == second.layers > 0 and not first.skipped and not second.skipped


def test_other_pictures_in_the_sequence_are_left_alone_and_the_target_is_matched(pack):
    """Flux Kontext and Qwen-Image-Edit: their tokens stand behind the target's."""
    for name in ("Flux.1", "Qwen-Image"):
        bench = bench_of(pack, name)
        edited = [[bench.positive[0][0], {**bench.positive[0][1], "reference_latents": [latent_of(bench.model, 3, 8, 8)]}]]
        clean, noise, x = made(bench)
        reference = reference_of(bench, *(torch.roll(each, 2, -1) for each in (clean, noise)), bench.positive)
        matched, trace = applied(bench, reference)
        plain, result = (evaluated(model, edited, bench.negative, [(x, SIGMA)] * 2)[-1] for model in (bench.model, matched))
        assert trace.layers and not trace.skipped and not close(result, plain, RUN)
        assert ((trace.last().flow[0, 0] - 1) % 8 == 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["Qwen-Image", "Cosmos-Predict2", "Wan"])
def test_more_than_one_frame_is_left_alone_with_one_message(pack, name):
    bench = bench_of(pack, name)
    frames = torch.cat([latent_of(bench.model, seed, *SIZE) for seed in (1, 2)], 2)
    matched, trace = applied(bench, other_reference(bench))
    plain, result = (evaluated(model, bench.positive, bench.negative, [(frames, SIGMA)] * 2)[-1]
                     for model in (bench.model, matched))
    assert torch.equal(plain, result) and len(trace.skipped) == 1
    invert = pack.module("dreammatcher.host.matching.invert").invert_reference
    with pytest.raises(ValueError, match="reference LATENT: it is .*; give one picture"):
        invert(bench.model, {"samples": frames}, bench.positive, bench.negative, 2, "simple")


def test_methods_of_unets_refuse_a_transformer_by_name(z):
    backbone = z.pack.module("dreammatcher.host.model.backbone")
    with pytest.raises(ValueError, match="model: NextDiT is not a UNet.*SD1.x, SD2.x or SDXL"):
        backbone.unet_backbone_of(z.model.model)
    widths = z.pack.module("dreammatcher.host.model.text_patches").prompt_widths
    with pytest.raises(ValueError, match="model: NextDiT is not a UNet"):
        widths(z.model.model)


def test_a_transformer_of_another_kind_is_refused_by_its_name_with_the_families_that_work(pack):
    import comfy.supported_models
    from comfy.ldm.modules import attention

    if not hasattr(attention, "wrap_attn"):
        pytest.skip("this host does not let us into transformers")
    model = randomised(comfy.supported_models.AuraFlow(dict(
        cond_seq_dim=96, n_layers=2, n_double_layers=1, dim=64, n_heads=4, max_seq=64)))
    with pytest.raises(ValueError, match="so AuraFlow is not matched; use an SD1.x.*Krea 2.*SD3 or HiDream checkpoint"):
        pack.module("dreammatcher.host.model.backbone").backbone_of(model.model)


def test_easy_works_with_words_alone_and_with_a_mask(host, pack, toybox):
    """On Toybox-Z with random weights: its text encoder and autoencoder are the trained ones."""
    module = pack.module("toybox.transformer")
    try:
        module.host_class()
    except RuntimeError:
        pytest.skip("this host does not know Z-Image")
    model = randomised(module.ToyboxZFamily({**module.CONFIG, "n_layers": 5}))
    easy = pack.module("dreammatcher.host.matching.easy")
    picture = host.nodes["ToyboxReference"]().draw(3, "robot", 1, "grass")[0]

    def matched(mask, **options):
        with torch.inference_mode():
            return easy.match_subject(model, toybox[1], toybox[2], picture, "a photo of a robot", "a robot in the snow", "",
                                      "robot", easy.Kept(), mask, **options)[0]

    for preset, mask in (("balanced", torch.ones(1, 128, 128)), ("best", torch.ones(1, 128, 128)), ("balanced", None),
                         ("best", None)):
        led, positive, negative, trace = matched(mask, preset=preset)
        with torch.inference_mode():
            result = host.nodes["KSampler"]().sample(led, 1, 4, 4.0, "euler", "simple", positive, negative,
                                                     {"samples": torch.zeros(1, 4, 16, 16)})[0]["samples"]
        assert torch.isfinite(result).all() and trace.layers and not trace.why_nothing_matched()
