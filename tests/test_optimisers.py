"""Optimisers: each moves what learns at the rates that the tooltips name, under every schedule, and goes on bit for bit."""

from __future__ import annotations

import sys

import pytest
import torch
from small_training import Linear, latents, outcome, seeded, stopped

from dreammatcher.training import optimisers
from dreammatcher.training.dreambooth import full_of, lora_of
from dreammatcher.training.loop import train
from dreammatcher.training.recipe import SubjectRecipe
from dreammatcher.training.settings import (
    ADAFACTOR,
    ADAMW,
    ADAMW_8BIT,
    CONSTANT,
    OPTIMISERS,
    PRODIGY,
    SCHEDULES,
    LoraSettings,
    ObjectiveSettings,
    OptimiserSettings,
    TrainingSettings,
)
from dreammatcher.training.state import Checkpoint
from dreammatcher.training.trainables import Group, TokenRows

STEPS = 40


pytestmark = pytest.mark.usefixtures("gradients")


def recipe(kind: str, rate: float) -> SubjectRecipe:
    model = Linear()
    unet = full_of(model.unet, rate) if kind == "full" else lora_of(model.unet, ("to_q.weight",), LoraSettings(2), rate, seeded())
    return SubjectRecipe(model, latents(1.0, 2.0), ObjectiveSettings(), unet=unet)


def moved(kind: str, rate: float, settings: OptimiserSettings) -> float:
    """Root mean square of what a training adds to the model's weights."""
    trained = recipe(kind, rate)
    train(trained, TrainingSettings(steps=STEPS, batch=4, optimiser=settings))
    added = torch.cat([value.detach().flatten() for value in trained.unet.differences().values()])
    return float(added.square().mean().sqrt())


def installed(name: str) -> bool:
    try:
        __import__(optimisers.OTHERS[name][1]) if name in optimisers.OTHERS else None
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, STEPS // 4])
@pytest.mark.parametrize(("kind", "rate"), [("lora", 1e-3), ("full", 1e-3), ("full", 5e-6)])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_moves_about_as_far_as_adamw_under_every_schedule(name, kind, rate, schedule, warmup):
    if not installed(name) or name == ADAMW_8BIT and not torch.cuda.is_available():
        pytest.skip(f"{name} needs its package, and its device")
    adamw = moved(kind, rate, OptimiserSettings(ADAMW, schedule=schedule, warmup=warmup))
    assert adamw > 0.1 * rate
    distance = moved(kind, 1.0 if name == PRODIGY else rate, OptimiserSettings(name, schedule=schedule, warmup=warmup))
    assert distance > adamw / 4
    assert name == PRODIGY or distance < 4 * adamw


@pytest.mark.parametrize("rate", [1e-4, 5e-3])
def test_adafactor_moves_a_word_and_a_bias_too(rate):
    rows, bias = TokenRows(torch.ones(1, 8), rate), torch.nn.Parameter(torch.zeros(8))
    optimiser = optimisers.optimiser_of([*rows.groups(), Group([bias], rate)], OptimiserSettings(ADAFACTOR, weight_decay=0.0))
    for _ in range(10):
        (rows.rows.sum() + bias.sum()).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert torch.allclose(bias, torch.full((8,), -10 * rate), rtol=1e-3)
    assert torch.allclose(rows.rows, 1 + bias, rtol=1e-3)


@pytest.mark.parametrize(("rates", "said"), [((1e-4,), "by yours, 0.0001"), ((1.0, 0.5), "one rate for all that learns")])
def test_prodigy_is_refused_at_rates_with_which_it_would_learn_nothing_or_break(rates, said):
    groups = [Group([torch.nn.Parameter(torch.zeros(2))], rate) for rate in rates]
    with pytest.raises(ValueError, match=f"rate: Prodigy .*{said}.* set every rate of the node to 1"):
        optimisers.optimiser_of(groups, OptimiserSettings(PRODIGY))


@pytest.mark.parametrize("name", optimisers.OTHERS)
def test_an_optimiser_whose_package_is_missing_is_named(name, monkeypatch):
    package, module, _ = optimisers.OTHERS[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"optimiser: {name} needs the package {package}, .* or choose {ADAMW}"):
        optimisers.optimiser_of([Group([torch.nn.Parameter(torch.zeros(2))], 1.0)], OptimiserSettings(name))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_goes_on_bit_for_bit(tmp_path, name):
    if not installed(name) or name == ADAMW_8BIT and not torch.cuda.is_available():
        pytest.skip(f"{name} needs its package, and its device")
    chosen = TrainingSettings(steps=6, optimiser=OptimiserSettings(name, schedule=CONSTANT, warmup=2))
    whole, begun, again = (recipe("lora", 1.0 if name == PRODIGY else 1e-2) for _ in range(3))
    train(whole, chosen)
    stopped(tmp_path / "state.safetensors", at=4, begun=begun, chosen=chosen)
    train(again, chosen, Checkpoint(tmp_path / "state.safetensors", "one"))
    assert all(torch.equal(value, outcome(again)[key]) for key, value in outcome(whole).items())
