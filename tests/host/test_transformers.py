"""Appearance matching in diffusion transformers: off leaves every bit, a reference of itself too, shifts are found."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from transformers_world import (
    SIGMA,
    SIZE,
    TRANSFORMERS,
    applied,
    bench_of,
    block_of,
    drawn,
    evaluated,
    latent_of,
    made,
    other_reference,
    reference_of,
)


@pytest.fixture(params=list(TRANSFORMERS))
def family(request, pack):
    return bench_of(pack, request.param)


def test_sites_are_met_in_their_order_with_their_grid(pack, family):
    points, capture = (pack.module(f"dreammatcher.host.model.{name}") for name in ("patch_points", "capture"))
    reference, seen, taps = other_reference(family), [], []

    def look(site, n, context, value, options):
        seen.append((site, value.shape[1]))
        return n, context, value

    with torch.inference_mode():
        capture.ode_derivative(family.model.model, reference.positive, reference.trajectory.at(SIGMA), SIGMA,
                               points.Points(values=look, feature=lambda tap, h, _: taps.append((tap, tuple(h.shape[-2:])))))
    grid = family.backbone.grid(family.backbone.matched[0], SIZE)
    assert grid == (tuple(SIZE) if family.name == "Flux.2" else (6, 8))
    assert seen == [(site, grid[0] * grid[1]) for site in family.backbone.matched] and len(seen) == 3
    assert taps == [(family.backbone.taps[0], grid)]


def test_strength_0_and_points_that_change_nothing_leave_every_bit(pack, family):
    plain = drawn(family.model, family.longer, family.negative, cfg=3.0)
    off, trace = applied(family, other_reference(family), strength=0.0)
    assert torch.equal(drawn(off, family.longer, family.negative, cfg=3.0), plain)
    assert trace.why_nothing_matched() == "strength is 0"
    late, trace = applied(family, other_reference(family), start=0.98, end=1.0)
    assert torch.equal(drawn(late, family.longer, family.negative, cfg=3.0), plain)
    on, trace = applied(family, other_reference(family))
    assert not close(drawn(on, family.longer, family.negative, cfg=3.0), plain, RUN) and trace.layers and not trace.skipped


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_reference_that_is_the_target_changes_nothing(family, cfg):
    """The same picture, noise and prompt: every cell matches itself and takes its own values."""
    clean, noise, x = made(family)
    seen = [(x, SIGMA)] * 2
    matched, trace = applied(family, reference_of(family, clean, noise, family.positive))
    # with guidance, the negative row takes values of the positive one: it gets the same prompt here
    negative = family.positive if cfg > 1 else family.negative
    plain = evaluated(family.model, family.positive, negative, seen, cfg)
    result = evaluated(matched, family.positive, negative, seen, cfg)
    assert all(close(ours, theirs, RUN) for ours, theirs in zip(result, plain))
    snapshot = trace.last()
    assert trace.layers and snapshot.flow.abs().max() == 0
    assert bool((snapshot.target_mask * snapshot.confidence == 1).all())


@pytest.mark.parametrize("down, right", [(0, 3), (2, 1)])
def test_a_known_shift_of_the_references_tokens_is_found_exactly(family, down, right):
    clean, noise, x = made(family)
    patch = family.backbone.patch
    moved = [torch.roll(each, (down * patch, right * patch), (-2, -1)) for each in (clean, noise)]
    matched, trace = applied(family, reference_of(family, *moved, family.positive))
    evaluated(matched, family.positive, family.negative, [(x, SIGMA)] * 2)
    flow = trace.last().flow[0]
    height, width = family.backbone.grid(family.backbone.matched[0], SIZE)
    assert bool(((flow[0] - right) % width == 0).all()) and bool(((flow[1] - down) % height == 0).all())


def test_what_is_matched_is_the_references_value_at_the_match(pack, family):
    """Seen by whoever holds the slot for attention behind the matched model."""
    clean, noise, x = made(family)
    moved = [torch.roll(each, 2 * family.backbone.patch, -1) for each in (clean, noise)]
    reference = reference_of(family, *moved, family.positive)
    site = family.backbone.matched[-1]
    values: dict[str, torch.Tensor] = {}

    def watched(model, name):
        met = []

        def hold(func, q, k, v, *rest, **named):
            if block_of(family, met, q, k, named["transformer_options"]) == site:
                values[name] = v.flatten(2).clone() if v.ndim > q.ndim else v.clone()
            return func(q, k, v, *rest, **named)

        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = hold
        return clone

    # in the last matched block alone, so that the blocks in front compute what they always do
    matched, _ = applied(family, reference, layers=str(site[1]))
    for model, name in ((family.model, "plain"), (matched, "matched")):
        evaluated(watched(model, name), family.positive, family.negative, [(x, SIGMA)] * 2)
    features = pack.module("dreammatcher.host.matching.reference_pass").reference_pass(
        family.model.model, family.backbone, reference, "cond", None, SIGMA, torch.device("cpu"), frozenset({site}))
    height, width = family.backbone.grid(site, SIZE)
    picture = family.backbone.picture_tokens(site, SIZE, values["plain"].shape[-2])
    flat = {name: value.transpose(1, 2).flatten(2) if value.ndim == 4 else value for name, value in values.items()}
    wanted = features.hidden[site].unflatten(1, (height, width)).roll(-2, 2).flatten(1, 2)
    assert close(flat["matched"][:, picture], wanted, RUN)
    assert not close(flat["plain"][:, picture], wanted, RUN)
    others = [number for number in range(flat["plain"].shape[1]) if number not in range(flat["plain"].shape[1])[picture]]
    assert bool(others) != bool(family.backbone.cross) and torch.equal(flat["matched"][:, others], flat["plain"][:, others])


def test_the_inversion_leads_back_and_what_it_made_is_matched(pack, family):
    """Small steps at small noise levels: the network is random, so its flow is rough."""
    invert, capture, process = (pack.module(f"dreammatcher.{name}") for name in (
        "matching.inversion", "host.model.capture", "host.model.backbone"))
    base, clean = family.model.model, made(family)[0]
    clean = clean[:, :, 0] if clean.ndim == 5 else clean
    prompt = other_reference(family).positive

    def back(steps: int) -> float:
        sigmas = [0.1 * (k + 1) / steps for k in range(steps)]
        with torch.inference_mode():
            def derivative(x, sigma):
                return capture.ode_derivative(base, prompt, x, sigma)
            path = invert.invert(derivative, clean, sigmas, sigmas[0] / 4, process.process_of(base.model_sampling))
            assert path.process is family.process
            return invert.psnr(invert.reconstruct(derivative, path), clean)

    assert back(16) > back(2) + 6


def test_the_stock_nodes_invert_mask_apply_and_sample(host, pack, family):
    """Prompts of different lengths come in two calls of one evaluation; pictures have their model's own form of latents."""
    latent = {"samples": latent_of(family.model, 7, *SIZE)}
    with torch.inference_mode():
        reference, back = host.nodes["DreamMatcherInvert"]().invert(family.model, family.positive, family.negative,
                                                                    steps=4, scheduler="simple", reference=latent)[:2]
        mask, = host.nodes["DreamMatcherMask"]().make(binarise="carried over", reference_mask=torch.ones(1, 96, 128))
        matched, trace = host.nodes["DreamMatcherApply"]().apply(
            model=family.model, strength=1.0, start=0.0, end=1.0, layers="", preset="best", reference=reference, mask=mask)
        led = host.nodes["DreamMatcherGuidance"]().guide(matched, 1.0, 0.0, 1.0, "inside")[0]
        pictures = [host.nodes["KSampler"]().sample(model, 1, 4, 3.0, "euler", "simple", family.longer, family.negative,
                                                    {"samples": torch.zeros_like(latent["samples"])})[0]["samples"]
                    for model in (family.model, matched, led)]
    assert back["samples"].shape == latent["samples"].shape == pictures[0].shape
    assert all(torch.isfinite(each).all() for each in (*pictures, back["samples"]))
    assert trace.layers and not trace.skipped and not trace.why_nothing_matched()
    assert not close(pictures[1], pictures[0], RUN) and not close(pictures[2], pictures[1], RUN)


def with_one_token_more(bench):
    """The model as a pack leaves it that puts a token of its own into the sequence."""
    model, network = bench.model.clone(), bench.model.model.diffusion_model
    if hasattr(network, "patchify_and_embed"):
        embed = network.patchify_and_embed

        def more(*given, **named):
            tokens, mask, sizes, texts, places, zero = embed(*given, **named)
            return torch.cat((tokens, tokens[:, -1:]), 1), mask, sizes, texts, torch.cat((places, places[:, -1:]), 1), zero

        model.add_object_patch("diffusion_model.patchify_and_embed", more)
    elif hasattr(network, "context_embedder"):
        project = network.context_embedder.forward
        model.add_object_patch("diffusion_model.context_embedder.forward",
                               lambda text: torch.cat((project(text), project(text[:, -1:])), 1))
    elif hasattr(network, "forward_orig"):
        forward = network.forward_orig

        def longer(image, places, text, text_places, *given, **named):
            return forward(image, places, torch.cat((text, text[:, -1:]), 1),
                           torch.cat((text_places, text_places[:, -1:]), 1), *given, **named)

        model.add_object_patch("diffusion_model.forward_orig", longer)
    else:
        model.set_model_patch(lambda args: {**args, "txt": torch.cat((args["txt"], args["txt"][:, -1:]), 1),
                                            "txt_ids": torch.cat((args["txt_ids"], args["txt_ids"][:, -1:]), 1)}, "post_input")
    return model


def test_tokens_that_do_not_fit_leave_the_call_alone_with_one_message(family):
    if family.backbone.cross:
        pytest.skip("its sequence is the picture alone, so that no pack puts tokens into it; frames are tested")
    if family.name == "HiDream":
        pytest.skip("its picture begins the sequence, whatever a pack puts behind it")
    longer = with_one_token_more(family)
    plain = drawn(longer, family.longer, family.negative, cfg=3.0)
    matched, trace = applied(family, other_reference(family), model=longer)
    assert torch.equal(drawn(matched, family.longer, family.negative, cfg=3.0), plain)
    assert len(trace.skipped) == 1 and "tokens are not told apart" in trace.why_nothing_matched()
    assert not torch.equal(plain, drawn(family.model, family.longer, family.negative, cfg=3.0))


def test_batches_and_odd_sizes_are_matched(family):
    matched, trace = applied(family, other_reference(family))
    plain, result = (drawn(model, family.longer, family.negative, height=11, width=15, batch=2, cfg=3.0)
                     for model in (family.model, matched))
    assert torch.isfinite(result).all() and trace.layers and not trace.skipped
    assert not close(result, plain, RUN)


def test_the_foreground_is_the_part_that_is_painted(family):
    """A painted target goes before what is carried over; a painted reference is carried over by the match."""
    clean, noise, x = made(family)
    reference = reference_of(family, clean, noise, family.positive)
    left = torch.zeros(1, 1, *SIZE)
    left[..., :8] = 1
    for mask in ({"target_mask": left}, {"reference_mask": left, "carried": True}):
        matched, trace = applied(family, reference, mask)
        evaluated(matched, family.positive, family.negative, [(x, SIGMA)] * 2)
        found = trace.last().target_mask[0, 0]
        half = found.shape[1] // 2
        assert bool((found[:, :half] == 1).all()) and bool((found[:, half:] == 0).all()), mask.keys()


def test_the_last_quarter_is_matched_from_the_first_evaluation_on_and_earlier_blocks_where_they_are_chosen(family):
    """A block in front of the tap has nothing to be matched by before the second evaluation."""
    clean, noise, x = made(family)
    reference = reference_of(family, clean, noise, family.positive)

    def count(times: int, layers: str = "") -> int:
        matched, trace = applied(family, reference, layers=layers)
        evaluated(matched, family.positive, family.negative, [(x, SIGMA)] * times)
        return trace.layers

    assert [count(1), count(2)] == [2, 4]
    assert [count(1, "2, 3, 4"), count(2, "2, 3, 4")] == [2, 2 + 3] and [count(1, "4"), count(1, "2")] == [1, 0]
    with pytest.raises(ValueError, match="layers: '1' is not among this model's matched blocks 2, 3, 4; leave it empty for the "
                                         "last quarter of all"):
        applied(family, reference, layers="1")
