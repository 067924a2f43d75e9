"""The foreground of a reference by its features, and carried over to a target by the match."""

from __future__ import annotations

import pytest
import torch

from dreammatcher.matching.appearance import sharpened
from dreammatcher.matching.correspondence import JointMatch, match
from dreammatcher.matching.foreground import (
    RIDGE,
    at_grid,
    carried_over,
    inside,
    joined,
    leaning,
    mean_of_grids,
    painted_cells,
    subject_cells,
    tidied,
)

SIDE = 12


def animal() -> torch.Tensor:
    """A body with a leg of one cell's width, [1, 1, H, W]."""
    shape = torch.zeros(1, 1, SIDE, SIDE)
    shape[..., 3:7, 2:9] = 1
    shape[..., 7:11, 3] = 1
    return shape


def look(shape: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Features [1, N, C] of two noise levels in which the subject's cells are alike, and so are the others."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(2, 24, generator=generator)
    noisy = (kinds[shape.flatten().long()] + 0.3 * torch.randn(SIDE * SIDE, 24, generator=generator) for _ in range(2))
    return [each[None] for each in noisy]


def attention(shape: torch.Tensor) -> list[torch.Tensor]:
    """Maps at two grids as cross-attention makes them: blurred, and blind to the leg."""
    body = shape.clone()
    body[..., 7:, :] = 0
    blurred = torch.nn.functional.avg_pool2d(body, 3, 1, 1) * 0.02 + 0.001
    return [blurred, torch.nn.functional.avg_pool2d(blurred, 2)]


def found(maps: list[torch.Tensor], features: list[torch.Tensor]) -> torch.Tensor:
    return at_grid(subject_cells(maps, features, (SIDE, SIDE)), (SIDE, SIDE))


def test_a_leg_that_attention_does_not_see_is_found_by_its_likeness_to_the_body():
    shape = animal()
    seen = (mean_of_grids(attention(shape), (SIDE, SIDE)) > 0.5).float()
    assert not seen[..., 8:, :].any()
    assert torch.equal(found(attention(shape), look(shape)), shape)


def test_the_regression_equals_its_dual_form():
    shape = animal()
    goal, vectors = leaning(mean_of_grids(attention(shape), (SIDE, SIDE))).flatten().double(), joined(look(shape)).double()
    kernel, target = vectors @ vectors.T, goal
    assert kernel.diagonal().mean() == pytest.approx(1, rel=1e-6)
    for _ in range(5):
        dual = torch.linalg.solve(kernel + RIDGE * len(goal) * torch.eye(len(goal)).double(), target - target.mean())
        score = kernel @ dual + target.mean()
        target = torch.lerp(score.sign(), goal, 0.7)
    expected = ((score + 1) / 2 + 0.05).clamp(0, 1).float().view(1, 1, SIDE, SIDE)
    assert torch.allclose(subject_cells(attention(shape), look(shape), (SIDE, SIDE)), expected, atol=1e-4)


@pytest.mark.parametrize("scale", [0.01, 0.7, 100.0])
@pytest.mark.parametrize("shift", [-10.0, 0.3, 10.0])
@pytest.mark.parametrize("seed", range(10))
def test_neither_size_nor_place_of_features_and_maps_matters(scale, shift, seed):
    shape = animal()
    maps, features = attention(shape), look(shape, seed)
    expected = found(maps, features)
    moved = found([each * scale for each in maps], [each * scale + shift for each in features])
    assert (expected != moved).float().mean() < 0.02


def test_maps_without_contrast_leave_no_foreground():
    assert not found([torch.full((1, 1, 4, 4), 0.2)], look(animal())).any()


def test_grids_weigh_the_same_however_many_maps_they_have():
    first, second = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 3, 3)
    assert torch.allclose(mean_of_grids([first, second], (6, 6)), mean_of_grids([first, second, second, second], (6, 6)))


def test_a_foreground_is_carried_over_by_a_known_shift():
    shape, features = animal(), torch.randn(1, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    joint = JointMatch.of([match(features, features.roll((2, 1), (2, 3)))])
    assert torch.equal(carried_over([shape], joint), shape.roll((2, 1), (2, 3)))


def test_each_cell_takes_the_foreground_of_its_own_reference():
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randn(1, 16, SIDE, SIDE, generator=generator) for _ in range(2))
    target = torch.cat((first[..., :6], second[..., 6:]), 3)
    joint = JointMatch.of([match(first, target), match(second, target)])
    carried = carried_over([torch.ones(1, 1, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)], joint)
    assert carried[..., :6].all() and not carried[..., 6:].any()


def test_specks_go_holes_close_and_thin_parts_stay():
    shape = animal()
    shape[..., 5, 5] = 0  # a hole
    shape[..., 1, 10] = 1  # a speck
    left = tidied(shape)
    assert left[0, 0, 5, 5] == 1 and left[0, 0, 1, 10] == 0
    assert left[..., 7:10, 3].all(), "the leg"


def test_the_inside_leaves_the_edge_but_not_at_the_pictures_border():
    assert torch.equal(inside(torch.ones(1, 1, 4, 5)), torch.ones(1, 1, 4, 5))
    square = torch.zeros(1, 1, 7, 7)
    square[..., 1:6, 1:6] = 0.5
    assert inside(square).count_nonzero() == 9 and inside(square).max() == 0.5


def test_a_painted_mask_counts_where_it_covers_a_fifth_of_a_cell():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 0, :2], mask[..., 4:, 4:] = 1, 1  # an eighth of the first cell and all of the last
    assert torch.equal(painted_cells(mask, (2, 2)), torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]]))
    mask[..., 1, :2] = 1
    assert painted_cells(mask, (2, 2))[0, 0, 0, 0] == 1


def test_longer_queries_look_at_fewer_cells_and_weight_0_changes_no_bit():
    query = torch.randn(4, SIDE * SIDE, 8, generator=torch.Generator().manual_seed(3))  # two chunks of two pictures
    weight = animal().repeat(2, 1, 1, 1)
    longer = sharpened(query, weight, 0.5)
    here = weight[0].flatten() > 0
    assert torch.equal(longer[:, ~here], query[:, ~here]) and torch.allclose(longer[:, here], query[:, here] * 1.5)

    def entropy(given: torch.Tensor) -> torch.Tensor:
        share = torch.softmax(given @ query.transpose(1, 2), -1)
        return -(share * share.clamp_min(1e-30).log()).sum(-1)

    assert (entropy(longer)[:, here] < entropy(query)[:, here]).all()
