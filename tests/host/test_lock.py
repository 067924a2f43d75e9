"""Lock (DreamMatcher) on edit models: off leaves every bit, a reference of itself too, shifts are found, what is lost is said."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from lock_world import EDITED, locked, places, values_of, with_pictures, without_places
from test_transformers import with_one_token_more
from transformers_world import SIGMA, SIZE, bench_of, drawn, evaluated, latent_of, made

WAYS = ("attention", "values")
NO_PICTURE = "the model got no reference picture: connect ReferenceLatent"


@pytest.fixture(params=EDITED)
def family(request, pack):
    return bench_of(pack, request.param)


def roll(x: torch.Tensor, bench, down: int, right: int) -> torch.Tensor:
    return torch.roll(x, (down * bench.backbone.patch, right * bench.backbone.patch), (-2, -1))


@pytest.mark.parametrize("way", WAYS)
def test_strength_0_and_a_span_that_has_no_step_leave_every_bit(family, way):
    edited = with_pictures(family, family.longer, latent_of(family.model, 3, *SIZE))
    plain = drawn(family.model, edited, family.negative, cfg=3.0)
    off, trace = locked(family, strength=0.0, way=way)
    assert torch.equal(drawn(off, edited, family.negative, cfg=3.0), plain)
    assert trace.why_nothing_locked() == "strength is 0"
    late, trace = locked(family, start=0.98, end=1.0, way=way)
    assert torch.equal(drawn(late, edited, family.negative, cfg=3.0), plain)
    assert "no step lies between start and end" in trace.why_nothing_locked()
    on, trace = locked(family, way=way)
    assert not close(drawn(on, edited, family.negative, cfg=3.0), plain, RUN)
    assert trace.layers and not trace.skipped and not trace.why_nothing_locked()


def test_a_reference_that_is_the_target_changes_nothing(family):
    """All tokens at one place and, where the family shows references without noise, at one time."""
    x = made(family)[2]
    network = family.model.model.diffusion_model
    if hasattr(network, "time_scale"):
        network.time_scale = 0.0
    model = without_places(family.model)
    edited = with_pictures(family, family.positive, x)
    plain, = evaluated(model, edited, family.negative, [(x, SIGMA)])
    alike, trace = locked(family, model)
    assert close(evaluated(alike, edited, family.negative, [(x, SIGMA)])[0], plain, RUN)
    assert trace.layers == 2 and trace.share == 1
    other = with_pictures(family, family.positive, made(family, 6)[2])
    plain, = evaluated(model, other, family.negative, [(x, SIGMA)])
    assert not close(evaluated(alike, other, family.negative, [(x, SIGMA)])[0], plain, RUN)


@pytest.mark.parametrize("down, right", [(0, 3), (2, 1)])
def test_a_known_shift_of_a_reference_is_found_exactly_and_its_values_land_there(family, down, right):
    """Seen by whoever holds the slot for attention: the picture's values are those of its place in the reference."""
    x = made(family)[2]
    edited = with_pictures(family, family.positive, roll(x, family, down, right))
    seen = {}
    for name, model in (("plain", family.model), ("locked", locked(family)[0])):
        clone, seen[name] = values_of(family, model)
        evaluated(clone, edited, family.negative, [(x, SIGMA)])
    tap = family.backbone.taps[0]
    grid = family.backbone.grid(family.backbone.matched[0], SIZE)
    for block in (number for number in seen["plain"] if number >= tap):
        for name, values in seen.items():
            picture, reference = places(family, values[block], SIZE)
            wanted = values[block][:, reference].unflatten(1, grid).roll((-down, -right), (1, 2)).flatten(1, 2)
            assert torch.equal(values[block][:, picture], wanted) == (name == "locked"), (block, name)
    plain, value = seen["plain"][tap], seen["locked"][tap]
    picture, _ = places(family, value, SIZE)
    others = [number for number in range(value.shape[1]) if number not in range(value.shape[1])[picture]]
    assert torch.equal(plain[:, others], value[:, others]) and not torch.equal(plain[:, picture], value[:, picture])
    assert all(torch.equal(seen["plain"][block], seen["locked"][block]) for block in range(tap))


@pytest.mark.parametrize("number", [0, 2])
def test_by_attention_each_place_looks_more_at_its_place_in_a_reference_that_is_shifted(family, pack, monkeypatch, number):
    """The second of two; values stay as they are."""
    x, sizes = made(family)[2], ((8, 8), SIZE)
    edited = with_pictures(family, family.positive, latent_of(family.model, 20, *sizes[0]), roll(x, family, 2, 1))
    lock, given = pack.module("dreammatcher.host.matching.lock"), []
    raised = lock.raised
    monkeypatch.setattr(lock, "raised", lambda *each: given.append((*each, raised(*each))) or given[-1][-1])
    model, trace = locked(family, reference=number, way="attention")
    watched, values = values_of(family, model)
    before, plain = values_of(family, family.model)
    results = [evaluated(each, edited, family.negative, [(x, SIGMA)])[0] for each in (watched, before)]
    first = family.backbone.blocks * 3 // 4
    assert not close(results[0], results[1], RUN) and not trace.skipped
    assert trace.layers == len(given) == family.backbone.blocks - first and torch.equal(values[first], plain[first])
    grid = family.backbone.grid(family.backbone.matched[0], SIZE)
    _, _, reference = places(family, values[first], *sizes)
    output, query, key, value, positions, factor, mask, after = given[0]
    wanted = torch.arange(reference.start, reference.stop).unflatten(0, grid).roll((-2, -1), (0, 1)).flatten()
    assert torch.equal(positions[0], wanted) and bool((factor == lock.FACTOR).all())
    assert torch.equal(value.transpose(1, 2).flatten(2), values[first]) and output.shape == query.shape
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + (0 if mask is None else mask)).softmax(-1)
    assert close(output, weights @ value, RUN), "what attention gave is of these queries, keys and values"
    weights[:, :, torch.arange(len(wanted)), wanted] *= lock.FACTOR
    assert close(after, weights / weights.sum(-1, keepdim=True) @ value, RUN) and not close(after, output, RUN)


def test_a_workflow_that_was_saved_before_there_were_two_ways_goes_by_values(host, family):
    edited = with_pictures(family, family.positive, latent_of(family.model, 3, *SIZE))
    node = host.nodes["DreamMatcherLock"]
    results = {way: drawn(node().lock(family.model, 1.0, 0.0, 1.0, 0, -1.0, 10.0, **({"way": way} if way else {}))[0], edited,
                          family.negative) for way in ("", *WAYS)}
    assert torch.equal(results[""], results["values"]) and not close(results["attention"], results["values"], RUN)
    assert node.INPUT_TYPES()["optional"]["way"][1]["default"] == "attention", "new nodes go by attention"


def test_tokens_that_do_not_fit_leave_the_call_alone_with_one_message(family):
    longer = with_one_token_more(family)
    edited = with_pictures(family, family.longer, latent_of(family.model, 3, 8, 8))
    plain = drawn(longer, edited, family.negative, cfg=3.0)
    model, trace = locked(family, longer)
    assert torch.equal(drawn(model, edited, family.negative, cfg=3.0), plain)
    assert len(trace.skipped) == 1 and "tokens are not told apart" in trace.why_nothing_locked()


def test_a_call_without_a_reference_stays_as_it_is_and_says_so_once(family, caplog):
    plain = drawn(family.model, family.longer, family.negative, cfg=3.0)
    model, trace = locked(family)
    assert torch.equal(drawn(model, family.longer, family.negative, cfg=3.0), plain)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "nothing was locked in this run: " + NO_PICTURE in said[0]
    assert trace.why_nothing_locked().startswith(NO_PICTURE)


def test_a_negative_prompt_without_a_reference_is_drawn_as_it_is_without_a_message(family, caplog):
    edited = with_pictures(family, family.positive, latent_of(family.model, 3, *SIZE))
    x = made(family)[2]
    model, trace = locked(family)
    watched, values = values_of(family, model)
    before, plain = values_of(family, family.model)
    for each in (watched, before):
        evaluated(each, edited, family.negative, [(x, SIGMA)], cfg=3.0)
    tap = family.backbone.taps[0]
    assert values.keys() == plain.keys() and torch.equal(values[tap], plain[tap]), "the negative's call comes last"
    assert trace.layers == 2 and not trace.skipped
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_both_rows_take_the_match_of_the_positive_one(family, pack, monkeypatch):
    """Together in one call, and in two calls of one evaluation: the negative's own tokens would match otherwise."""
    x, reference = made(family)[2], roll(made(family)[2], family, 1, 2)
    edited = with_pictures(family, family.positive, reference)
    lock, matched = pack.module("dreammatcher.host.matching.lock"), []
    found = lock.found
    monkeypatch.setattr(lock, "found", lambda *given: matched.append(given[0].shape[0]) or found(*given))
    for negative, calls in ((family.negative, 1), (family.longer, 1 if family.name == "Flux.2" else 2)):  # which pads prompts
        model, trace = locked(family)
        evaluated(model, edited, with_pictures(family, negative, reference), [(x, SIGMA)] * 2, cfg=3.0)
        assert matched == [1, 1] and trace.layers == 2 * 2 * calls, "one match for each evaluation"
        matched.clear()


def test_references_of_different_sizes_are_chosen_by_their_number(family):
    x = made(family)[2]
    sizes = ((8, 8), SIZE, (4, 12))
    strange = [latent_of(family.model, 20 + number, *size) for number, size in enumerate(sizes)]
    strange[1] = roll(x, family, 2, 1)
    edited = with_pictures(family, family.positive, *strange)
    tap = family.backbone.taps[0]
    grid = family.backbone.grid(family.backbone.matched[0], SIZE)
    for number in (0, 1, 2, 3):
        model, trace = locked(family, reference=number)
        clone, values = values_of(family, model)
        evaluated(clone, edited, family.negative, [(x, SIGMA)])
        assert trace.layers == 2 and not trace.skipped
        picture, *others = places(family, values[tap], *sizes)
        wanted = values[tap][:, others[1]].unflatten(1, grid).roll((-2, -1), (1, 2)).flatten(1, 2)
        assert torch.equal(values[tap][:, picture], wanted) == (number in (0, 2)), "the second fits best"
        taken = values[tap][0, picture]
        if number in (1, 3):
            source = values[tap][0, others[number - 1]]
            assert all(bool((token == source).all(1).any()) for token in taken)
    model, trace = locked(family, reference=4)
    plain, result = (evaluated(each, edited, family.negative, [(x, SIGMA)])[0] for each in (family.model, model))
    assert torch.equal(plain, result)
    assert trace.why_nothing_locked().startswith("reference: picture 4 is asked for, and the model got 3; choose a lower")


def test_only_what_matches_the_white_of_a_mask_is_taken(family):
    x = made(family)[2]
    left = torch.zeros(1, 1, *SIZE)
    left[..., :8] = 1
    edited = with_pictures(family, family.positive, x, x)
    tap = family.backbone.taps[0]
    grid = family.backbone.grid(family.backbone.matched[0], SIZE)
    watched, plain = values_of(family, family.model)
    evaluated(watched, edited, family.negative, [(x, SIGMA)])
    for mask, share in ((left, 0.5), (torch.cat((left, 1 - left)), 0.5)):
        model, trace = locked(family, mask=mask, reference=1)
        clone, values = values_of(family, model)
        evaluated(clone, edited, family.negative, [(x, SIGMA)])
        picture = places(family, values[tap], SIZE, SIZE)[0]
        changed = (values[tap] != plain[tap])[0, picture].any(1).unflatten(0, grid)
        assert float(trace.share) == share
        assert bool(changed[:, :grid[1] // 2].all()) and not bool(changed[:, grid[1] // 2:].any())
    with pytest.raises(ValueError, match="reference_mask: it is empty"):
        locked(family, mask=torch.zeros(1, 1, *SIZE))


def test_a_stricter_lock_trusts_less_and_half_the_strength_goes_half_the_way(family):
    x = made(family)[2]
    edited = with_pictures(family, family.positive, latent_of(family.model, 3, *SIZE))
    tap = family.backbone.taps[0]

    def seen(**settings):
        model, trace = locked(family, **settings)
        clone, values = values_of(family, model)
        evaluated(clone, edited, family.negative, [(x, SIGMA)])
        return values[tap], trace

    loose, trace = seen()
    assert float(trace.share) == 1
    for stricter in ([{"similarity": bar} for bar in (0.2, 0.4, 0.6, 0.8)], [{"threshold": bar} for bar in (0.5, 0.3, 0.2, 0.1)]):
        shares = [float(seen(**settings)[1].share) for settings in stricter]
        assert shares == sorted(shares, reverse=True) and any(0 < share < 1 for share in shares), shares
    nothing, trace = seen(similarity=1.0)
    assert "no match was trusted" in trace.why_nothing_locked()
    half, _ = seen(strength=0.5)
    assert close(half, (loose + nothing) / 2, RUN)


@pytest.mark.parametrize("way", WAYS)
def test_batches_odd_sizes_and_the_stock_sampler(host, family, way):
    """Prompts of different lengths come in two calls of one evaluation."""
    shown = with_pictures(family, family.longer, latent_of(family.model, 3, 10, 14), latent_of(family.model, 4, 16, 8))
    negative = with_pictures(family, family.negative, latent_of(family.model, 3, 10, 14))
    with torch.inference_mode():
        model, = host.nodes["DreamMatcherLock"]().lock(family.model, 1.0, 0.0, 1.0, 0, -1.0, 10.0, way=way)
        latent = {"samples": torch.zeros_like(latent_of(family.model, 7, 11, 15, 2))}
        plain, result = (host.nodes["KSampler"]().sample(each, 1, 4, 3.0, "euler", "simple", shown, negative,
                                                         latent)[0]["samples"] for each in (family.model, model))
    assert result.shape == plain.shape and torch.isfinite(result).all() and not close(result, plain, RUN)
