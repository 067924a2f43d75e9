"""Appearance matching in diffusion transformers: off leaves every bit, a reference of itself too, shifts are found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from closeness import RUN, close
from transformers_world import TRANSFORMERS, drawn, evaluated, latent_of, prompt_of, transformer

SIGMA = 0.4
SIZE = (12, 16)  # of the latent; cells are 6 x 8, of Flux.2 as many as the latent's


@pytest.fixture(params=list(TRANSFORMERS))
def family(request, pack):
    return bench_of(pack, request.param)


@pytest.fixture
def z(pack):
    return bench_of(pack, "Z-Image")


def bench_of(pack, name: str) -> SimpleNamespace:
    model = transformer(name)
    backbone = pack.module("dreammatcher.host.model.backbone").backbone_of(model.model)
    return SimpleNamespace(name=name, model=model, backbone=backbone, pack=pack, positive=prompt_of(name, 1),
                           negative=prompt_of(name, 2), longer=prompt_of(name, 3, 41))


def reference_of(bench, clean: torch.Tensor, noise: torch.Tensor, prompt: list):
    """A reference whose x is known at every noise level, without an inversion."""
    inversion, reference, process = (bench.pack.module(f"dreammatcher.{name}") for name in (
        "matching.inversion", "matching.reference", "backbones.process"))
    conditioning = bench.pack.module("dreammatcher.host.text.conditioning").from_host(prompt, "positive")[0]
    clean, noise = (x[:, :, 0] if x.ndim == 5 else x for x in (clean, noise))
    trajectory = inversion.Trajectory((SIGMA,), clean, noise, process.CONST)
    return reference.Reference(trajectory, clean, conditioning, conditioning, bench.backbone.family)


def applied(bench, reference, mask: dict | None = None, model=None, layers: str = "", **settings):
    """(model, trace) with the foreground carried over from a reference that is all subject."""
    module = bench.pack.module("dreammatcher.matching.settings")
    given = {"reference_mask": torch.ones(1, 1, *SIZE), "carried": True} if mask is None else mask
    settings.setdefault("start", 0.0)
    return bench.pack.module("dreammatcher.host.matching.apply").apply(
        model or bench.model, reference, module.MaskSettings(**given), module.ApplySettings(**settings), layers)


def made(bench, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A clean picture, noise, and the latent of both at SIGMA."""
    clean, noise = (latent_of(bench.model, each, *SIZE) for each in (seed, seed + 100))
    return clean, noise, (1 - SIGMA) * clean + SIGMA * noise


def other_reference(bench):
    clean, noise, _ = made(bench, 9)
    return reference_of(bench, clean, noise, bench.positive)


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
        def hold(func, q, k, v, *rest, **named):
            options = named["transformer_options"]
            if "block_index" in options and family.backbone.site(options["block_type"], options["block_index"]) == site:
                values[name] = v.clone()
            return func(q, k, v, *rest, **named)

        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = hold
        return clone

    # in the last matched block alone, so that the blocks in front compute what they always do
    matched, _ = applied(family, reference, layers=str(site[1]))
    for model, name in ((family.model, "plain"), (matched, "matched")):
        evaluated(watched(model, name), family.positive, family.negative, [(x, SIGMA)] * 2)
    features = pack.module("dreammatcher.host.matching.reference_pass").reference_pass(
        family.model.model, family.backbone, reference, "cond", None, SIGMA, torch.device("cpu"))
    height, width = family.backbone.grid(site, SIZE)
    picture = family.backbone.picture_tokens(site, SIZE, values["plain"].shape[2])
    flat = {name: value.transpose(1, 2).flatten(2) for name, value in values.items()}
    wanted = features.hidden[site].unflatten(1, (height, width)).roll(-2, 2).flatten(1, 2)
    assert close(flat["matched"][:, picture], wanted, RUN)
    assert not close(flat["plain"][:, picture], wanted, RUN)
    others = [number for number in range(flat["plain"].shape[1]) if number not in range(flat["plain"].shape[1])[picture]]
    assert others and torch.equal(flat["matched"][:, others], flat["plain"][:, others])


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
            assert path.process.name == "CONST"
            return invert.psnr(invert.reconstruct(derivative, path), clean)

    assert back(16) > back(2) + 6


def test_the_stock_nodes_invert_mask_apply_and_sample(host, pack, family):
    """Prompts of different lengths come in two calls of one evaluation; pictures have their model's own form of latents."""
    latent = {"samples": latent_of(family.model, 7, *SIZE)}
    with torch.inference_mode():
        reference, back = host.nodes["DreamMatcherInvert"]().invert(family.model, latent, family.positive, family.negative,
                                                                    steps=4, scheduler="simple")[:2]
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
    longer = with_one_token_more(family)
    plain = drawn(longer, family.longer, family.negative, cfg=3.0)
    matched, trace = applied(family, other_reference(family), model=longer)
    assert torch.equal(drawn(matched, family.longer, family.negative, cfg=3.0), plain)
    assert len(trace.skipped) == 1 and "tokens are not told apart" in trace.why_nothing_matched()
    assert not torch.equal(plain, drawn(family.model, family.longer, family.negative, cfg=3.0))


def test_a_block_that_runs_without_the_hosts_options_is_told(family):
    """As TeaCache calls the blocks of Flux. The others are matched."""
    blocks = next(name for name in ("layers", "single_blocks", "transformer_blocks")
                  if hasattr(family.model.model.diffusion_model, name))
    place = f"diffusion_model.{blocks}.{len(getattr(family.model.model.diffusion_model, blocks)) - 1}.forward"
    deaf = family.model.clone()
    forward = deaf.get_model_object(place)
    deaf.add_object_patch(place, lambda *given, transformer_options=None, **named: forward(*given, **named))
    matched, trace = applied(family, other_reference(family), model=deaf)
    plain = drawn(family.model, family.longer, family.negative)
    assert not close(drawn(matched, family.longer, family.negative), plain, RUN) and trace.layers
    assert len(trace.skipped) == 1 and trace.skipped[0].startswith("blocks 4 run without ComfyUI's options for attention")


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
    with_us = list(heard)
    heard.clear()
    drawn(held(family.model), family.longer, family.negative)
    assert heard and with_us == heard, "it is called for every attention of the run, and in no pass over the reference"


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


def test_the_first_evaluation_is_matched_behind_the_tap_and_later_ones_everywhere(family):
    clean, noise, x = made(family)
    reference = reference_of(family, clean, noise, family.positive)
    counts = []
    for times in (1, 2):
        matched, trace = applied(family, reference)
        evaluated(matched, family.positive, family.negative, [(x, SIGMA)] * times)
        counts.append(trace.layers)
    assert counts == [2, 2 + 3]


def test_without_a_mask_the_refusal_asks_for_one(z):
    subject = z.pack.module("dreammatcher.subject").Subject("dog", "a dog", (3,), 20)
    for mask in ({"target_subject": subject}, {"target_subject": subject, "reference_subject": subject, "carried": True}):
        with pytest.raises(ValueError, match="reference_mask: this model does not show"):
            applied(z, other_reference(z), mask)
    with pytest.raises(ValueError, match="keys and values replaced.* works in a UNet alone"):
        applied(z, other_reference(z), injection="keys and values replaced")
    with pytest.raises(ValueError, match="layers: '0' is not among this model's matched blocks 2 to 4"):
        applied(z, other_reference(z), layers="0")


def test_a_reference_mask_is_carried_over_where_the_words_would_have_been_asked(z, caplog):
    subject = z.pack.module("dreammatcher.subject").Subject("dog", "a dog", (3,), 20)
    mask = {"target_subject": subject, "reference_mask": torch.ones(1, 1, *SIZE)}
    matched, trace = applied(z, other_reference(z), mask)
    assert any("carried over from the reference_mask" in record.getMessage() for record in caplog.records)
    drawn(matched, z.positive, z.negative)
    assert trace.layers


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


def test_a_compiled_model_gives_the_same_picture(z):
    from test_never_silently_plain import compiled

    torch.compiler.reset()
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


def test_more_than_one_frame_is_left_alone_with_one_message(pack):
    bench = bench_of(pack, "Qwen-Image")
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
