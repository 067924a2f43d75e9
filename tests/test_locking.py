"""The lock of an edit model's picture to its references, as tensors: shifts are found, trust and masks limit it."""

from __future__ import annotations

import pytest
import torch

from dreammatcher.backbones.dit import BLOCK, DiTBackbone, Order
from dreammatcher.matching import locking
from dreammatcher.matching.locking import ATTENTION, LockPlan, LockSettings, LockTrace, foregrounds_at, found, locked, raised

LOOSE = LockSettings(similarity=-1.0, threshold=10.0)
GRID = (5, 7)


def tokens(seed: int, grid: tuple[int, int] = GRID, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, grid[0] * grid[1], 24, generator=torch.Generator().manual_seed(seed))


def moved(value: torch.Tensor, down: int, right: int) -> torch.Tensor:
    return value.unflatten(1, GRID).roll((down, right), (1, 2)).flatten(1, 2)


def test_a_moved_reference_is_found_exactly_whatever_its_tint():
    value = tokens(1, batch=2)
    tinted = 1.5 * moved(value, 1, 2) + 20 * tokens(2)[:, :1]
    lock = found(value, GRID, [tinted], [GRID], None, LockSettings(similarity=0.9, threshold=10.0))
    assert bool((lock.weight == 1).all())
    assert torch.equal(moved(locked(value, [tinted], lock), 1, 2), tinted)


def test_every_place_takes_its_best_match_among_references_of_different_sizes():
    value, other, grids = tokens(1), tokens(3, (3, 4)), ((3, 4), GRID)
    half = value.clone()
    half[:, 18:] = tokens(4)[:, 18:]
    other[:, :5] = value[:, 18:23]
    made = locked(value, [other, half], found(value, GRID, [other, half], grids, None, LOOSE))
    assert torch.equal(made[:, :23], value[:, :23]) and not torch.equal(made[:, 23:], value[:, 23:])


def test_a_match_that_does_not_lead_back_or_is_not_alike_is_not_trusted():
    value, reference = tokens(1), tokens(5)
    loose = found(value, GRID, [reference], [GRID], None, LOOSE).weight
    back = found(value, GRID, [reference], [GRID], None, LockSettings(similarity=-1.0, threshold=0.1)).weight
    alike = found(value, GRID, [reference], [GRID], None, LockSettings(similarity=0.5, threshold=10.0)).weight
    assert loose.mean() == 1 and 0 < back.mean() < 1 and 0 < alike.mean() < 1
    nothing = found(value, GRID, [reference], [GRID], None, LockSettings(strength=0.0))
    assert torch.equal(locked(value, [reference], nothing), value)


def test_a_mask_keeps_what_matches_the_rest_of_its_reference():
    value, mask = tokens(1), torch.zeros(1, 1, 10, 14)
    mask[..., :6] = 1
    foregrounds = foregrounds_at(mask, [GRID, (3, 4)])
    assert bool((foregrounds[1] == 1).all()), "a reference without a mask is foreground"
    weight = found(value, GRID, [value, tokens(6, (3, 4))], [GRID, (3, 4)], foregrounds, LOOSE).weight
    assert bool((weight[..., :3] == 1).all()) and bool((weight[..., 3:] == 0).all())


@pytest.mark.parametrize("wrong, message", [
    ({"strength": 1.5}, "strength: 1.5 is outside 0..1"), ({"start": 0.5, "end": 0.5}, "start: 0.5 is not before end"),
    ({"reference": -1}, "reference: -1 is not at least 0"), ({"similarity": 2.0}, "similarity: 2.0 is outside"),
    ({"threshold": 0.0}, "cycle_threshold: 0.0 is outside"), ({"way": "both"}, "way: 'both' is none of attention, values")])
def test_settings_out_of_range_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        LockSettings(**wrong)


def numbers(sites) -> list[int]:
    return sorted(number for kind, number, _ in sites if kind == BLOCK)


def test_values_are_taken_over_from_the_block_that_is_matched_on_and_attention_is_raised_in_the_last_quarter():
    plan = LockPlan(DiTBackbone(10, 2, "any"), LOOSE, None, LockTrace())
    assert numbers(plan.layers) == [6, 7, 8, 9] == numbers(plan.heard) and plan.tap == 6
    by_attention = LockPlan(DiTBackbone(10, 2, "any"), LockSettings(way=ATTENTION), None, LockTrace())
    assert numbers(by_attention.layers) == [7, 8, 9] and numbers(by_attention.heard) == [6, 7, 8, 9]
    named = LockPlan(DiTBackbone(10, 2, "any"), LOOSE, None, LockTrace(), names="9, 8")
    assert numbers(named.layers) == [8, 9] and numbers(named.heard) == [6, 8, 9]
    with pytest.raises(ValueError, match="'5' is not among this model's blocks that can be locked 6, 7, 8, 9"):
        _ = LockPlan(DiTBackbone(10, 2, "any"), LOOSE, None, LockTrace(), names="5").layers


@pytest.mark.parametrize("masked", [False, True])
def test_raised_attention_is_softmax_attention_with_one_weight_multiplied(monkeypatch, masked):
    """Whatever number of scores is held at a time; a factor of 1 changes nothing, a huge one gives the match's value."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, count, 8, generator=generator) for count in (7, 11, 11))
    positions, factor = torch.randint(11, (2, 7), generator=generator), 1 + 50 * torch.rand(2, 7, generator=generator)
    mask = torch.randn(1, 1, 7, 11, generator=generator) if masked else None
    scores = query @ key.transpose(-1, -2) * 8 ** -0.5 + (0 if mask is None else mask)
    more = torch.zeros_like(scores).scatter(3, positions[:, None, :, None].expand(-1, 3, -1, -1),
                                            factor.log()[:, None, :, None].expand(-1, 3, -1, -1))
    plain, wanted = scores.softmax(-1) @ value, (scores + more).softmax(-1) @ value
    for at_once in (2**26, 200, 1):
        monkeypatch.setattr(locking, "SCORES_AT_ONCE", at_once)
        assert torch.allclose(raised(plain, query, key, value, positions, factor, mask), wanted, atol=1e-5)
    assert torch.equal(raised(plain, query, key, value, positions, torch.ones(2, 7), mask), plain)
    everything = raised(plain, query, key, value, positions, torch.full((2, 7), 1e9), mask)
    matched = value.gather(2, positions[:, None, :, None].expand(-1, 3, -1, 8))
    assert torch.allclose(everything, matched, atol=1e-3) and not torch.allclose(plain, matched, atol=0.1)


def test_other_pictures_lie_where_their_family_has_them():
    behind = DiTBackbone(5, 2, "any")
    site = (BLOCK, 3, 0)
    assert behind.other_pictures(site, slice(20, 26), 33, [(4, 4), (2, 6)], 20) == (slice(26, 30), slice(30, 33))
    assert behind.other_pictures(site, slice(20, 26), 34, [(4, 4), (2, 6)], 20) is None
    front = DiTBackbone(5, 2, "any", multiple=8, order=Order.LAST)
    assert front.other_pictures(site, slice(48, 54), 56, [(4, 4), (6, 6)], 20) == (slice(24, 28), slice(32, 41))
    assert front.other_pictures(site, slice(40, 46), 48, [(4, 4), (6, 6)], 20) is None
