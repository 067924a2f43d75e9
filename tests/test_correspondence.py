"""Matching, warping and confidence: closed forms, known warps, odd sizes."""

from __future__ import annotations

import math

import pytest
import torch
from closeness import close
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from dreammatcher.matching.correspondence import confidence, grid_of, match, take, warp

sizes = st.tuples(st.integers(1, 23), st.integers(1, 23))


def random_grid(size: tuple[int, int], seed: int = 0, batch: int = 1, channels: int = 24) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def pck(flow: torch.Tensor, expected: torch.Tensor, inside: torch.Tensor, within: float) -> float:
    """Share of correct keypoints: positions whose flow is ``within`` cells of the expected one."""
    return ((flow - expected).norm(dim=1)[0][inside] <= within).float().mean().item()


def test_an_image_matches_itself_with_zero_flow_and_full_confidence():
    features = random_grid((11, 7))
    matches = match(features, features)
    assert torch.equal(matches.flow, torch.zeros(1, 2, 11, 7))
    assert close(matches.similarity, torch.ones(1, 1, 11, 7))
    assert torch.equal(confidence(matches, torch.full((1, 1, 11, 7), 0.2)), torch.ones(1, 1, 11, 7))


@pytest.mark.parametrize("shift", [(3, 0), (0, -4), (2, 5), (-6, -1)])
def test_a_shift_is_recovered_wherever_it_stays_inside(shift):
    reference = random_grid((17, 20))
    target = torch.roll(reference, shifts=(shift[1], shift[0]), dims=(2, 3))
    ys, xs = torch.meshgrid(torch.arange(17), torch.arange(20), indexing="ij")
    inside = (ys - shift[1] >= 0) & (ys - shift[1] < 17) & (xs - shift[0] >= 0) & (xs - shift[0] < 20)
    expected = torch.tensor((-shift[0], -shift[1]))[None, :, None, None].expand(1, 2, 17, 20)
    assert pck(match(reference, target).flow, expected, inside, 0.0) == 1.0


def test_a_flip_is_recovered_everywhere():
    reference = random_grid((9, 14))
    matches = match(reference, reference.flip(3))
    xs = torch.arange(14).float()
    assert torch.equal(matches.flow[:, 0], ((13 - xs) - xs).expand(1, 9, 14))
    assert torch.equal(matches.flow[:, 1], torch.zeros(1, 9, 14))


@pytest.mark.parametrize("degrees", [15, 40, 90])
def test_a_rotation_is_recovered_within_one_cell_for_95_percent(degrees):
    reference = torch.nn.functional.interpolate(random_grid((8, 8)), size=(32, 32), mode="bicubic", align_corners=True)
    angle = math.radians(degrees)
    centred = grid_of(reference) - 15.5
    turned = torch.stack((math.cos(angle) * centred[:, 0] - math.sin(angle) * centred[:, 1],
                          math.sin(angle) * centred[:, 0] + math.cos(angle) * centred[:, 1]), 1)
    expected = turned - centred
    matches = match(reference, warp(reference, expected))
    inside = (turned.abs().amax(1)[0] < 15)
    assert pck(matches.flow, expected, inside, 1.0) >= 0.95


@settings(max_examples=40, deadline=None)
@given(reference=sizes, target=sizes, batch=st.integers(1, 3))
def test_every_size_gives_flows_that_point_into_the_other_image(reference, target, batch):
    matches = match(random_grid(reference, 1), random_grid(target, 2, batch))
    assert matches.flow.shape == (batch, 2, *target) and matches.reverse_flow.shape == (batch, 2, *reference)
    for flow, other in ((matches.flow, reference), (matches.reverse_flow, target)):
        x, y = (flow + grid_of(flow)).unbind(1)
        assert x.min() >= 0 and y.min() >= 0 and x.max() <= other[1] - 1 and y.max() <= other[0] - 1
    assert matches.indices.max() < reference[0] * reference[1]


@settings(max_examples=40, deadline=None)
@given(reference=sizes, target=sizes, tile=st.integers(1, 600))
def test_the_tile_size_never_changes_the_result(reference, target, tile):
    one, other = random_grid(reference, 3), random_grid(target, 4)
    whole, tiled = match(one, other, tile=10_000), match(one, other, tile=tile)
    assert torch.equal(whole.flow, tiled.flow) and torch.equal(whole.reverse_flow, tiled.reverse_flow)
    assert close(whole.similarity, tiled.similarity)


@settings(max_examples=30, deadline=None)
@given(reference=sizes, target=sizes)
def test_the_match_is_the_brute_force_argmax_of_cosine(reference, target):
    one, other = random_grid(reference, 5), random_grid(target, 6)
    flat = [torch.nn.functional.normalize(rearrange(x, "1 c h w -> (h w) c"), dim=-1) for x in (one, other)]
    assert torch.equal(match(one, other).indices[0], (flat[1] @ flat[0].T).argmax(1))


@settings(max_examples=30, deadline=None)
@given(reference=sizes, target=sizes)
def test_taking_matched_tokens_equals_warping_along_the_flow(reference, target):
    matches = match(random_grid(reference, 7), random_grid(target, 8))
    picture = random_grid(reference, 9, channels=3)
    taken = take(rearrange(picture, "b c h w -> b (h w) c"), matches.indices)
    warped = rearrange(warp(picture, matches.flow), "b c h w -> b (h w) c")
    assert close(taken, warped)


def test_warping_outside_the_picture_gives_zero():
    picture = torch.ones(1, 1, 4, 4)
    assert torch.equal(warp(picture, torch.full((1, 2, 4, 4), 10.0)), torch.zeros(1, 1, 4, 4))


def test_the_cycle_error_is_the_distance_to_where_the_way_back_ends():
    reference, target = torch.zeros(1, 3, 1, 3), torch.zeros(1, 3, 1, 3)
    reference[0, :, 0] = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    target[0, :, 0] = torch.tensor([[1.0, 0, 0.9], [0, 1, 0], [0, 0, 0.1]])  # columns are positions; the last is like the first
    matches = match(reference, target)
    assert matches.indices.tolist() == [[0, 1, 0]]
    assert matches.cycle_error[0, 0, 0].tolist() == [0.0, 0.0, 2.0]


def test_confidence_gives_more_slack_to_a_larger_subject():
    matches = match(random_grid((12, 12), 1), random_grid((12, 12), 2))
    shares = [confidence(matches, torch.full((1, 1, 12, 12), m)).mean().item() for m in (0.05, 0.4, 1.0)]
    assert shares[0] < shares[1] < shares[2]


def test_matches_stay_inside_the_reference_mask():
    mask = torch.zeros(1, 1, 10, 10)
    mask[..., 2:5, 3:9] = 1
    matches = match(random_grid((10, 10), 1), random_grid((8, 9), 2), reference_mask=mask)
    assert take(rearrange(mask, "b c h w -> b (h w) c"), matches.indices).min() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_descriptors_are_matched_in_float32(dtype):
    features = random_grid((6, 5)).to(dtype)
    assert torch.equal(match(features, features).flow, torch.zeros(1, 2, 6, 5))


@settings(max_examples=30, deadline=None)
@given(reference=sizes, target=sizes, tile=st.integers(1, 600))
def test_cosines_in_half_precision_choose_a_candidate_that_is_as_near_but_for_rounding(reference, target, tile):
    one, other = random_grid(reference, 10), random_grid(target, 11)
    exact, rounded = match(one, other), match(one, other, dtype=torch.float16, tile=tile)
    flat = [torch.nn.functional.normalize(rearrange(x, "1 c h w -> (h w) c"), dim=-1) for x in (one, other)]
    chosen = (flat[1] * flat[0][rounded.indices[0]]).sum(1)
    assert (exact.similarity.flatten() - chosen).max() < 2e-3
    assert rounded.similarity.dtype == torch.float32 and torch.allclose(rounded.similarity, exact.similarity, atol=2e-3)


@pytest.mark.parametrize("reference, target, words", [
    (torch.ones(1, 3, 4, 4), torch.ones(1, 5, 4, 4), "3 channels"),
    (torch.ones(2, 3, 4, 4), torch.ones(3, 3, 4, 4), "2 references"),
    (torch.ones(3, 4, 4), torch.ones(1, 3, 4, 4), r"\[B, C, H, W\]"),
    (torch.ones(1, 3, 0, 4), torch.ones(1, 3, 4, 4), "nothing to match"),
])
def test_descriptors_that_do_not_pair_are_refused_with_their_shapes(reference, target, words):
    with pytest.raises(ValueError, match=words):
        match(reference, target)


def test_a_threshold_of_zero_is_refused():
    matches = match(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
    with pytest.raises(ValueError, match="threshold: 0"):
        confidence(matches, torch.ones(1, 1, 4, 4), 0)


def test_unit_vectors_are_matched_as_they_are_with_the_same_result():
    source, target = (torch.nn.functional.normalize(random_grid(size, seed, batch=2), dim=1)
                      for seed, size in enumerate(((7, 5), (6, 11))))
    first, second = match(source, target), match(source, target, unit=True)
    assert torch.equal(first.flow, second.flow) and torch.equal(first.reverse_flow, second.reverse_flow)
    assert close(first.similarity, second.similarity)


def test_a_neighbouring_cell_is_never_a_miss_where_that_is_asked():
    """At 8 x 8 cells and a small subject the paper's slack is under one cell: only exact cycles would be trusted."""
    matches = match(random_grid((8, 8)), random_grid((8, 8), seed=1))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2, :2] = 1
    error = matches.cycle_error
    assert torch.equal(confidence(matches, mask, 0.4), (error < 0.4 * 8 * mask.mean()).float())
    assert torch.equal(confidence(matches, mask, 0.4, 1.5), (error < 1.5).float())
    assert torch.equal(confidence(matches, torch.ones_like(mask), 0.4, 1.5), (error < 3.2).float())
