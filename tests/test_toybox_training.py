"""What every Toybox training relies on: a schedule that ends at rest, and checkpoints that go on as if never cut off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toybox.making.optimisation import Run, as_matrix, rate_factor


@pytest.fixture(autouse=True)
def gradients():
    """A host that another test has booted leaves them off."""
    with torch.enable_grad():
        yield


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    return model.to(memory_format=torch.channels_last)


def go_on(run: Run, until: int) -> None:
    while run.step < until:
        torch.manual_seed(run.step)
        x = torch.randn(4, 3, 8, 8)
        run.descend((run.model(x) - x.flip(1)).square().mean())


def test_the_rate_rises_stays_and_ends_at_zero():
    rates = [rate_factor(step, 1000) for step in range(1001)]
    assert rates[0] < 0.01 and rates[200] == rates[599] == 1.0 and rates[800] == pytest.approx(0.5) and rates[1000] == 0.0
    assert all(later <= earlier for earlier, later in zip(rates[200:], rates[201:]))


def test_a_matrix_view_of_a_convolution_shares_its_memory_in_either_layout():
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.randn(4, 3, 3, 3).to(memory_format=layout)
        view = as_matrix(weight, weight)
        view[2] = 0.0
        assert view.shape == (4, 27) and not weight[2].any() and weight[1].any()


def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = Run("a", tmp_path / "whole", small_model(), 30, 1e-2, (0.9, 0.99))
    go_on(whole, 30)
    first = Run("a", tmp_path / "cut", small_model(), 30, 1e-2, (0.9, 0.99))
    go_on(first, 13)
    first.save()
    second = Run("a", tmp_path / "cut", small_model(), 30, 1e-2, (0.9, 0.99))
    go_on(second, 30)
    assert second.since[1] == 13
    for one, other in zip(whole.model.parameters(), second.model.parameters()):
        assert torch.equal(one, other)
    for one, other in zip(whole.averages, second.averages):
        assert all(torch.equal(a, b) for a, b in zip(one.mean, other.mean))


def test_training_lowers_the_loss_and_leaves_the_averaged_weights(tmp_path):
    run = Run("a", tmp_path, small_model(), 400, 1e-2, (0.99,))
    go_on(run, 1)
    start = run.running
    go_on(run, 400)
    run.finish()
    x = torch.randn(16, 3, 8, 8)
    assert (run.model(x) - x.flip(1)).square().mean() < start / 10
    assert all(torch.equal(value, mean) for value, mean in zip(run.parameters, run.averages[0].mean))


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_nothing(tmp_path):
    run = Run("a", tmp_path, small_model(), 10, 1e-2)
    before = [value.clone() for value in run.parameters]
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        run.descend(run.model(torch.full((1, 3, 8, 8), float("nan"))).sum())
    assert all(torch.equal(value, kept) for value, kept in zip(run.parameters, before))
