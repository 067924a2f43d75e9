"""Optimisers: each moves what learns at the rates that the tooltips name, under every schedule, and goes on bit for bit."""

from __future__ import annotations

import sys

import pytest
import torch
from small_training import Linear, latents, outcome, seeded, stopped

from dreammatcher.training import optimisers
from dreammatcher.training.auto import Numbers
from dreammatcher.training.dreambooth import full_of, lora_of
from dreammatcher.training.job import DREAMBOOTH_LORA
from dreammatcher.training.loop import train
from dreammatcher.training.recipe import SubjectRecipe
from dreammatcher.training.settings import (
    ADAFACTOR,
    ADAMW,
    ADAMW_8BIT,
    CONSTANT,
    LINEAR,
    LION,
    OPTIMISERS,
    PRODIGY,
    SCHEDULE_FREE,
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
    if name == SCHEDULE_FREE and schedule != CONSTANT:
        pytest.skip("it is refused, which has a test of its own")
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


def test_schedule_free_is_refused_under_a_schedule_and_with_an_average():
    with pytest.raises(ValueError, match="schedule: Schedule-free AdamW needs no schedule .* 'linear'; choose constant"):
        OptimiserSettings(SCHEDULE_FREE, schedule=LINEAR)
    with pytest.raises(ValueError, match="average: Schedule-free AdamW gives an average .* set 0.9 to 0"):
        TrainingSettings(average=0.9, optimiser=OptimiserSettings(SCHEDULE_FREE))


@pytest.mark.parametrize("finished", [True, False])
def test_schedule_free_shows_and_keeps_its_average_and_goes_on_as_if_nobody_had_looked(finished):
    pytest.importorskip("schedulefree")
    chosen = TrainingSettings(steps=8, optimiser=OptimiserSettings(SCHEDULE_FREE, weight_decay=0.0))
    plain, looked = recipe("lora", 1e-2), recipe("lora", 1e-2)
    train(plain, chosen)
    seen = []

    def look(training):
        stepping = outcome(looked)
        with training.as_finished() if finished else training.as_drawn():
            seen.append((stepping, outcome(looked)))
        assert all(torch.equal(value, stepping[name]) for name, value in outcome(looked).items())

    train(looked, chosen, after_step=look)
    assert all(torch.equal(value, outcome(looked)[name]) for name, value in outcome(plain).items())
    stepping, drawn = seen[-1]
    assert any(not torch.equal(value, drawn[name]) for name, value in stepping.items())
    assert all(torch.equal(value, drawn[name]) for name, value in outcome(looked).items()), "the end is what was drawn last"


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("kind", ["lora", "full", "word"])
def test_the_estimate_of_an_optimisers_state_is_what_it_takes(name, kind):
    if not installed(name) or name == ADAMW_8BIT and not torch.cuda.is_available():
        pytest.skip(f"{name} needs its package, and its device")
    shapes = {"lora": [(4, 320), (640, 4), (4, 64, 3, 3)], "full": [(320, 320), (320,), (64, 32, 3, 3)], "word": [(2, 768)]}
    values = [torch.nn.Parameter(0.1 + torch.rand(shape, generator=seeded())) for shape in shapes[kind]]
    optimiser = optimisers.optimiser_of([Group(values, 1.0)], OptimiserSettings(name))
    for value in values:
        value.grad = torch.randn(value.shape, generator=seeded())
    optimiser.step()
    taken = sum(part.nbytes for state in optimiser.state.values() for part in state.values() if torch.is_tensor(part))
    assert taken == pytest.approx(optimisers.state_bytes(name, values), rel=0.01)


def test_a_rate_that_is_left_open_is_a_third_for_lion():
    adamw, lion = (Numbers().filled(DREAMBOOTH_LORA, name).rate for name in (ADAMW, LION))
    assert lion == pytest.approx(adamw / 3)


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
