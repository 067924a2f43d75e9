"""Lock (DreamMatcher) beside other packs and nodes, what it refuses, and what it costs."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from lock_world import locked, with_pictures
from torch.utils.flop_counter import FlopCounterMode
from transformers_world import applied, bench_of, drawn, last_block, latent_of, made, other_reference
from world import random_unet


@pytest.fixture(params=("Flux.1", "Qwen-Image", "Z-Image"))
def family(request, pack):
    return bench_of(pack, request.param)


def edited_by(bench, *sizes) -> list:
    return with_pictures(bench, bench.longer, *(latent_of(bench.model, 3 + number, *size)
                                                for number, size in enumerate(sizes or ((12, 16),))))


def test_a_model_without_references_in_its_sequence_is_refused_in_one_sentence(host):
    works = "Lock .DreamMatcher. works on Flux.1 Kontext, Flux.2, Qwen-Image-Edit and Z-Image Omni"
    with pytest.raises(ValueError, match=works) as told:
        host.nodes["DreamMatcherLock"]().lock(random_unet(), 1.0, 0.0, 1.0, 0, 0.2, 0.1)
    assert "UNetModel" in str(told.value)
    assert any(what in str(told.value) for what in ("use Apply (DreamMatcher)", "this one is older"))


def test_chroma_takes_no_picture_and_is_refused(pack):
    with pytest.raises(ValueError, match="model: Chroma takes no reference picture into its sequence"):
        locked(bench_of(pack, "Chroma"))


def test_a_block_that_runs_without_the_hosts_options_is_told(family):
    place = last_block(family.model)
    deaf = family.model.clone()
    forward = deaf.get_model_object(place)
    deaf.add_object_patch(place, lambda *given, transformer_options=None, **named: forward(*given, **named))
    model, trace = locked(family, deaf)
    edited = edited_by(family)
    assert not close(drawn(model, edited, family.negative), drawn(deaf, edited, family.negative), RUN) and trace.layers
    assert len(trace.skipped) == 1 and "options for attention, so nothing is matched there: 4." in trace.skipped[0]


def test_apply_lora_and_another_holder_of_the_slot_work_beside_it_in_either_order(family):
    edited, heard = edited_by(family), []

    def hold(func, *given, **named):
        heard.append(named["transformer_options"].get("block_index"))
        return func(*given, **named)

    base = family.model.clone()
    weights = base.model.state_dict()
    name = next(name for name in weights if "attn.qkv.weight" in name or "attention.qkv.weight" in name or "to_v.weight" in name)
    base.add_patches({name: (0.01 * torch.ones_like(weights[name]),)})
    base.model_options["transformer_options"]["optimized_attention_override"] = hold
    plain = drawn(base, edited, family.negative)
    calls, pictures = len(heard), {}
    for order in ("Lock, Apply", "Apply, Lock"):
        if order == "Lock, Apply":
            model, matched = applied(family, other_reference(family), model=locked(family, base, strength=0.5)[0])
        else:
            model, _ = locked(family, applied(family, other_reference(family), model=base)[0], strength=0.5)
        heard.clear()
        pictures[order] = drawn(model, edited, family.negative)
        assert len(heard) == calls
    alone = (drawn(locked(family, base, strength=0.5)[0], edited, family.negative),
             drawn(applied(family, other_reference(family), model=base)[0], edited, family.negative))
    assert all(not close(picture, other, RUN) for picture in pictures.values() for other in (plain, *alone))


def test_two_locks_take_two_pictures(flux):
    edited = edited_by(flux, (12, 16), (8, 8))
    first, one = locked(flux, reference=1, strength=0.5)
    both, two = locked(flux, first, reference=2, strength=0.5)
    result = drawn(both, edited, flux.negative)
    assert one.layers == two.layers > 0 and not close(result, drawn(first, edited, flux.negative), RUN)


def test_flux_kv_cache_is_locked_and_matched_in_every_step(pack):
    """From the second step on the stock node leaves the references' tokens out and puts their values behind."""
    flux = bench_of(pack, "Flux.2")
    from comfy_extras.nodes_flux import FluxKVCache

    edited, counts = edited_by(flux), []
    for put_on in (lambda model: locked(flux, model), lambda model: applied(flux, other_reference(flux), model=model)):
        with torch.inference_mode():
            cached = FluxKVCache.execute(flux.model).result[0]
        model, trace = put_on(cached)
        assert torch.isfinite(drawn(model, edited, flux.negative, steps=3)).all() and not trace.skipped
        counts.append(trace.layers)
    assert counts == [2 * 3, len(flux.backbone.chosen("")) * 3], "blocks that are matched by default, in three steps"


def test_steps_that_easycache_skips_are_no_error(flux):
    from comfy_extras.nodes_easycache import EasyCacheNode

    with torch.inference_mode():
        lazy = EasyCacheNode.execute(flux.model, 1.5, 0.1, 1.0, False).result[0]
    model, trace = locked(flux, lazy)
    drawn(model, edited_by(flux), flux.negative, steps=10)
    assert 0 < trace.layers < 2 * 10 and not trace.skipped


def test_a_call_that_another_pack_makes_of_its_own_picture_is_left_alone(flux):
    from comfy.patcher_extension import WrappersMP

    def with_a_reference(executor, x, *rest, **named):
        executor(torch.ones_like(x), *rest, **named)
        return executor(x, *rest, **named)

    edited = edited_by(flux)
    expected = drawn(locked(flux)[0], edited, flux.negative)
    for model, trace in (locked(flux), locked(flux, applied(flux, other_reference(flux), strength=0.0)[0])):
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "pack", with_a_reference)
        assert torch.equal(drawn(model, edited, flux.negative), expected) and trace.layers == 2 * 4


@pytest.mark.parametrize("way", ["attention", "values"])
def test_a_compiled_model_gives_the_same_picture(flux, no_graphs, way):
    from test_never_silently_plain import compiled

    edited = edited_by(flux)
    plain, expected = drawn(flux.model, edited, flux.negative), drawn(locked(flux, way=way)[0], edited, flux.negative)
    assert close(drawn(compiled(flux.model), edited, flux.negative), plain, RUN)
    model, trace = locked(flux, way=way)
    assert close(drawn(compiled(model), edited, flux.negative), expected, RUN) and not trace.skipped


@pytest.mark.parametrize("way", ["attention", "values"])
def test_a_locked_step_takes_at_most_a_twentieth_more_arithmetic_and_waits_once(pack, way):
    """Waits are counted as for matching on UNets: one, to read the noise level; the run's end reads one more number."""
    from test_cost_of_a_step import WAITS
    from torch.profiler import ProfilerActivity, profile

    bench = bench_of(pack, "Flux.1")
    edited = with_pictures(bench, bench.positive, made(bench, 3)[2])
    flops, counts = {}, {}
    for name, model in (("plain", bench.model), ("locked", locked(bench, way=way)[0])):
        with FlopCounterMode(display=False) as counter:
            drawn(model, edited, bench.negative, steps=2)
        flops[name] = counter.get_total_flops()
        for steps in (2, 4):
            with profile(activities=[ProfilerActivity.CPU]) as recorded:
                drawn(model, edited, bench.negative, steps=steps)
            counts[name, steps] = {event.key: event.count for event in recorded.key_averages() if event.key.startswith("aten::")}
    assert flops["plain"] < flops["locked"] < 1.05 * flops["plain"]
    each = {name: {key: (counts[name, 4][key] - counts[name, 2].get(key, 0)) / 2 for key in counts[name, 4]} for name in flops}
    waits = {key: each["locked"].get(key, 0) - each["plain"].get(key, 0) for key in WAITS}
    assert {key: count for key, count in waits.items() if count} == {"aten::_local_scalar_dense": 1}
    assert sum(each["locked"].values()) < 1.25 * sum(each["plain"].values())
