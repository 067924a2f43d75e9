"""Guidance by closed forms: which way it leads, how far, and what stops it."""

from __future__ import annotations

import pytest
import torch
from closeness import close

from dreammatcher.matching.guidance import PAPER_LAMBDA, GuidanceSettings, correction, lead, masked_distance, shortened, slope


def scene(batch=2, height=5, width=7):
    generator = torch.Generator().manual_seed(0)
    clean, warped = (torch.randn(batch, 4, height, width, generator=generator) for _ in range(2))
    return clean, warped, torch.rand(batch, 1, height, width, generator=generator)


def official_loss(clean: list[torch.Tensor], warped: list[torch.Tensor], trust: list[torch.Tensor]) -> torch.Tensor:
    """Eq. 9 as the official code writes it, for the rows of one picture."""
    mask = torch.cat([t.expand_as(c) for t, c in zip(trust, clean)])
    return ((mask * torch.cat(warped) - mask * torch.cat(clean)) ** 2).sum() / mask.sum()


@torch.enable_grad()  # tests with a host turn gradients off for the whole process
def test_the_slope_is_the_derivative_of_the_official_loss_over_both_rows():
    clean, warped, trust = scene(batch=1)
    rows = [clean.clone().double().requires_grad_(), (clean + 1).double().requires_grad_()]
    loss = official_loss(rows, [warped.double()] * 2, [trust.double()] * 2)
    expected = torch.autograd.grad(loss, rows)
    for row, gradient in zip(rows, expected):
        assert close(slope(row.detach(), warped.double(), trust.double()), gradient)


def test_the_correction_is_the_papers_rule_for_the_latent_of_its_own_scale():
    sigma = 2.5
    abar = 1 / (1 + sigma**2)
    gradient_x = torch.randn(1, 4, 64, 64)  # dg/dx, at the size that the paper's lambda is meant for
    gradient_z = gradient_x / abar**0.5  # x = z / sqrt(abar)
    noise_change = -PAPER_LAMBDA * (1 - abar) ** 0.5 * gradient_z
    assert close(correction(gradient_x, sigma, 1.0), -sigma * noise_change)


def test_a_weight_of_mode_paper_means_the_same_at_every_size():
    clean, warped, trust = scene()
    corrections = []
    for repeats in (1, 3):  # the picture, and a sheet of nine of it
        sheet = [value.repeat(1, 1, repeats, repeats) for value in (clean, warped, trust)]
        corrections.append(correction(slope(*sheet), 2.0, 1.0))
    assert close(corrections[1], corrections[0].repeat(1, 1, 3, 3))


@pytest.mark.parametrize("weight, share", [(0.5, 0.1), (1.0, 0.2), (5.0, 1.0), (20.0, 1.0)])
def test_leading_closes_its_share_of_the_way_where_trust_is_full(weight, share):
    clean, warped, _ = scene()
    trust = torch.ones(2, 1, 5, 7)
    led = lead(clean, warped, trust, weight)
    assert close(masked_distance(led, warped, trust), (1 - share) * masked_distance(clean, warped, trust))


def test_leading_leaves_what_is_not_trusted_bit_for_bit():
    clean, warped, trust = scene()
    trust[..., :3] = 0
    led = lead(clean, warped, trust, 1.0)
    assert torch.equal(led[..., :3], clean[..., :3]) and not torch.equal(led[..., 3:], clean[..., 3:])
    warped[..., :3] = torch.nan
    assert torch.isfinite(lead(clean, warped, trust, 1.0)).all(), "an unused NaN must not spread"


def test_a_change_that_can_not_come_nearer_is_cut_to_the_way_picture_by_picture():
    clean, warped, trust = scene(batch=5)
    towards = trust * (warped - clean)
    change = torch.stack([0.1 * towards[0], 2.1 * towards[1], towards[2], towards[3], 1.9 * towards[4]])
    change[2, 0, 0, 0], change[3, 0, 0, 0] = torch.nan, torch.inf
    useful, finite = shortened(change, clean, [(warped, trust)])
    assert finite.tolist() == [True, True, False, False, True]
    assert torch.equal(useful[0], change[0]) and torch.equal(useful[4], change[4]) and not useful[2:4].any()
    assert close(useful[1], towards[1]), "as long as the way itself"


def test_a_change_for_two_subjects_is_measured_against_the_way_to_both():
    clean, warped, trust = scene(batch=1)
    empty = torch.zeros_like(trust)
    step = 0.5 * trust * (warped - clean)
    assert torch.equal(shortened(step, clean, [(warped, trust), (warped, empty)])[0], step)
    assert not shortened(step, clean, [(warped, empty)])[0].any()


@pytest.mark.parametrize("wrong, said", [
    ({"weight": -1}, "weight: -1"), ({"weight": float("nan")}, "weight: nan"),
    ({"start": 0.5, "end": 0.5}, "start: 0.5 is not before"), ({"end": 2.0}, "start and end"),
    ({"mode": "slow"}, "mode: 'slow'")])
def test_settings_out_of_range_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        GuidanceSettings(**wrong)
