"""Settings of a match: each saving saves what it says, and equals the simple way where both are defined."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_sampling import count_calls
from world import Bench, family_unet, random_unet, sample


@pytest.fixture(scope="module")
def bench(pack) -> Bench:
    return Bench(pack, random_unet())


@pytest.fixture
def match_settings(pack):
    return pack.module("dreammatcher.matching.settings").MatchSettings


def fresh(bench):
    """The reference without any features kept."""
    return bench.reference.with_store(bench.module("dreammatcher.matching.features").FeatureStore())


class Matches:
    """Counts the matches that runs make while it is entered."""

    def __init__(self, pack):
        self.run, self.grids = pack.module("dreammatcher.matching.matcher"), []

    def __enter__(self):
        self.original = self.run.match

        def counted(source, target, **options):
            self.grids.append(tuple(target.shape[-2:]))
            return self.original(source, target, **options)

        self.run.match = counted
        return self

    def __exit__(self, *_):
        self.run.match = self.original


@pytest.mark.parametrize("shared, passes", [(True, 1), (False, 2)])
def test_the_first_picture_costs_one_reference_row_when_shared_and_two_when_not(bench, match_settings, shared, passes):
    matched, _ = bench.apply(reference=fresh(bench), match=match_settings(shared=shared))
    with count_calls(bench.model) as calls:
        bench.sample(matched, steps=6)
    # the last of 6 + 1 sigmas is 0; the first step has nothing to match and asks for no reference
    assert calls.count == 6 + 5 * passes


@pytest.mark.parametrize("kind", ["cond", "uncond"])
@pytest.mark.parametrize("family, side", [("SD1.5", 8), ("SD1.5", 32), ("SDXL", 16)])
def test_a_reference_pass_ends_with_the_last_feature_that_is_wanted(pack, family, side, kind):
    capture, backbones = pack.module("dreammatcher.host.model.capture"), pack.module("dreammatcher.host.model.backbone")
    bench = Bench(pack, family_unet(family), height=side, width=side, steps=2, pooled=1280 if family == "SDXL" else None)
    base, reference, sigma = bench.model.model, bench.reference, bench.reference.trajectory.sigmas[0]
    backbone = backbones.backbone_of(base)
    seen, ends = {}, []
    points = pack.module("dreammatcher.host.model.patch_points").Points

    def keep(site, n, context, value, extra):
        seen[site] = n.clone()
        return n, context, value

    with torch.inference_mode():
        x = reference.trajectory.at(sigma)
        prompt = reference.positive if kind == "cond" else reference.negative
        capture.ode_derivative(base, prompt, x, sigma, points(values=keep))
        hook = base.diffusion_model.out.register_forward_hook(lambda *_: ends.append(1))
        reference_pass = pack.module("dreammatcher.host.matching.reference_pass").reference_pass
        made = reference_pass(base, backbone, reference, kind, bench.subjects[0], sigma, x.device, frozenset(backbone.matched))
        hook.remove()
    assert not ends and (made.subject is not None) == (kind == "cond") and len(made.scales) == len(backbone.taps)
    assert made.hidden.keys() == backbone.self_attention.keys()
    assert all(torch.equal(value, seen[layer]) for layer, value in made.hidden.items())


@pytest.mark.parametrize("shared, rows", [(True, 1), (False, 2)])
def test_each_grid_is_matched_once_per_step_and_row(bench, pack, match_settings, shared, rows):
    matched, _ = bench.apply(match=match_settings(shared=shared))
    with Matches(pack) as matches:
        bench.sample(matched, steps=6)
    assert sorted(matches.grids) == sorted(5 * rows * [(8, 8), (16, 16)])


def test_rows_in_calls_of_their_own_share_one_match(bench, pack, match_settings):
    from test_sampling import split_calls

    matched, _ = bench.apply(match=match_settings())
    with Matches(pack) as matches:
        bench.sample(split_calls(matched, order=[1]), steps=6)
    assert sorted(matches.grids) == sorted(5 * [(8, 8), (16, 16)])


def test_sharing_equals_not_sharing_when_both_rows_have_one_prompt(bench, match_settings):
    reference = replace(fresh(bench), negative=bench.reference.positive)
    images = [sample(bench.apply(reference=reference, match=match_settings(shared=shared))[0],
                     bench.target, bench.target, cfg=3.0)
              for shared in (True, False)]
    plain = sample(bench.model, bench.target, bench.target, cfg=3.0)
    assert (images[0] - images[1]).norm() < 1e-3 * (images[0] - plain).norm()


def test_every_second_step_halves_the_matches(bench, pack, match_settings):
    matched, _ = bench.apply(match=match_settings(every=2))
    with Matches(pack) as matches:
        out = bench.sample(matched, steps=9)
    assert len(matches.grids) == 2 * 4
    often = bench.sample(bench.apply(match=match_settings())[0], steps=9)
    assert not torch.equal(out, often)
    assert (out - often).norm() < (out - bench.sample(steps=9)).norm()


def test_guidance_uses_the_match_that_is_there(bench, pack, match_settings):
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(0.5, 0.0, 1.0, "fast")
    guide = pack.module("dreammatcher.host.matching.guide").guide
    matched, _ = bench.apply(match=match_settings())
    with Matches(pack) as matches:
        out = bench.sample(guide(matched, settings), steps=6)
    assert len(matches.grids) == 2 * 5
    assert not torch.equal(out, bench.sample(matched, steps=6))


def test_guidance_of_a_model_that_shares_nothing_matches_the_steps_own_features(bench, pack, match_settings):
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(0.5, 0.0, 1.0, "fast")
    guide = pack.module("dreammatcher.host.matching.guide").guide
    with Matches(pack) as matches:
        bench.sample(guide(bench.apply(match=match_settings(shared=False))[0], settings), steps=6)
    assert len(matches.grids) == 2 * 2 * 5 + 6


def test_a_change_of_strength_finds_the_features_of_the_run_before(bench, match_settings):
    reference = fresh(bench)
    bench.sample(bench.apply(reference=reference, match=match_settings())[0])
    with count_calls(bench.model) as calls:
        bench.sample(bench.apply(reference=reference, match=match_settings(), strength=0.5)[0])
    assert calls.count == 6


def test_fewer_noise_levels_and_low_rank_take_less_room_and_stay_close(bench, pack, match_settings):
    options = pack.module("dreammatcher.matching.features").FeatureOptions
    prepare = pack.module("dreammatcher.host.matching.invert").prepare_features
    run = dict(sampler="ddim", scheduler="ddim_uniform", steps=10)
    with torch.inference_mode():
        whole, small = (prepare(bench.model, bench.reference, bench.mask(), chosen)
                        for chosen in (options(), options(pca=16, noise_levels=5)))
    assert small.store.bytes() < 0.5 * whole.store.bytes()
    exact, close = (bench.sample(bench.apply(reference=r, match=match_settings())[0], **run) for r in (whole, small))
    assert 0 < (close - exact).norm() < (exact - bench.sample(**run)).norm()


@pytest.mark.parametrize("wrong, said", [({"pca": 0}, "pca: 0"), ({"every": 0}, "every: 0"), ({"sharpness": -1}, "sharpness: -1"),
                                         ({"sharpness": float("nan")}, "sharpness: nan")])
def test_match_settings_out_of_range_are_named(match_settings, wrong, said):
    with pytest.raises(ValueError, match=said):
        match_settings(**wrong)


def test_an_unknown_preset_is_named(pack):
    with pytest.raises(ValueError, match="preset: 'perfect' is unknown; choose one of best, balanced, fast, paper"):
        pack.module("dreammatcher.matching.settings").match_settings_of("perfect")


def test_a_store_made_ahead_holds_no_more_than_two_states_of_the_weights(bench, pack, match_settings):
    options = pack.module("dreammatcher.matching.features").FeatureOptions
    with torch.inference_mode():
        prepare = pack.module("dreammatcher.host.matching.invert").prepare_features
        prepared = prepare(bench.model, bench.reference, bench.mask(), options())
    once = prepared.store.bytes()
    key = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_v.weight"
    for strength in (0.1, 0.2, 0.3, 0.4):
        changed = bench.model.clone()
        changed.add_patches({key: (torch.eye(32),)}, strength)
        bench.sample(bench.apply(changed, reference=prepared, match=match_settings())[0])
    assert once < prepared.store.bytes() <= 2 * once


def test_a_compiled_model_gives_the_same_picture_and_compiles_nothing_of_ours(bench, match_settings, no_graphs):
    """Dynamo with the eager backend: what it cannot trace, or traces anew at every step, would show in its counters."""
    import torch._dynamo.utils as dynamo

    graphs = lambda: dynamo.counters["stats"]["unique_graphs"]  # noqa: E731
    matched, _ = bench.apply(match=match_settings())
    expected = bench.sample(matched)
    before = graphs()
    model = torch.compile(bench.model.model.diffusion_model, backend="eager")
    for reference in (bench.reference, fresh(bench), fresh(bench)):  # with the features at hand, and with passes for them
        compiled, _ = bench.apply(reference=reference, match=match_settings())
        compiled.add_object_patch("diffusion_model", model)
        assert torch.equal(bench.sample(compiled), expected)
        after = graphs()
        assert after > before
        assert torch.equal(bench.sample(compiled), expected)
        assert graphs() == after


def test_reference_passes_leave_a_compiled_model_compiled(bench, match_settings, no_graphs):
    """They end by an exception, at sight of which dynamo would give up on the frames that it passes."""
    runs = []

    def counting(graph, _):
        return lambda *inputs: (runs.append(1), graph.forward(*inputs))[1]

    unet = bench.model.model.diffusion_model  # or another test's compiled one
    model = torch.compile(getattr(unet, "_orig_mod", unet), backend=counting)
    kept = fresh(bench)

    def graphs_in_a_run(reference) -> int:
        compiled, _ = bench.apply(reference=reference, match=match_settings())
        compiled.add_object_patch("diffusion_model", model)
        runs.clear()
        bench.sample(compiled)
        return len(runs)

    bench.sample(bench.apply(reference=kept, match=match_settings())[0])  # features for the runs that count
    graphs_in_a_run(kept)  # compiles
    before = graphs_in_a_run(kept)
    assert before > 0
    assert graphs_in_a_run(fresh(bench)) == before
    assert graphs_in_a_run(kept) == before
