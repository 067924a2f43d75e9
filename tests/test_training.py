"""The training engine by itself: losses in closed form, trainables, and a loop that stops and goes on bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from closeness import close
from small_training import Linear, latents, normal, outcome, recipe, seeded, stopped
from torch import nn

from dreammatcher.subject import Conditioning
from dreammatcher.training import job, objective, state
from dreammatcher.training.captions import Naming
from dreammatcher.training.curve import time_left
from dreammatcher.training.data import Example, Preparation
from dreammatcher.training.details import Details
from dreammatcher.training.dreambooth import full_of
from dreammatcher.training.loop import PATIENCE, Training, train
from dreammatcher.training.optimisers import rate_factor
from dreammatcher.training.recipe import SubjectRecipe
from dreammatcher.training.sets import TrainingSet
from dreammatcher.training.settings import (
    ADAFACTOR,
    COSINE,
    LINEAR,
    Keeping,
    LoraSettings,
    ObjectiveSettings,
    OptimiserSettings,
    TrainingOptions,
    TrainingSettings,
)
from dreammatcher.training.state import Checkpoint
from dreammatcher.training.trainables import Full, Lora
from dreammatcher.weights import dense

pytestmark = pytest.mark.usefixtures("gradients")


ALPHAS = torch.tensor([0.9, 0.25])


def test_noise_is_added_with_unit_variance_and_velocity_is_its_derivative_by_the_angle():
    clean, noise = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    noisy = objective.add_noise(clean, noise, ALPHAS)
    assert close(noisy[1], 0.5 * clean[1] + 0.75**0.5 * noise[1])
    angle = torch.acos(ALPHAS.sqrt())
    ahead, behind = (objective.add_noise(clean, noise, torch.cos(angle + step) ** 2) for step in (1e-3, -1e-3))
    assert torch.allclose(objective.target(objective.VELOCITY, clean, noise, ALPHAS), (ahead - behind) / 2e-3, atol=2e-3)
    assert objective.target(objective.EPSILON, clean, noise, ALPHAS) is noise
    with pytest.raises(ValueError, match="'x0' is none of"):
        objective.target("x0", clean, noise, ALPHAS)


def test_a_masked_error_is_the_mean_over_what_the_mask_covers():
    predicted, wanted = torch.zeros(2, 4, 4, 4), torch.ones(2, 4, 4, 4)
    wanted[..., 2:] = 3
    left = torch.zeros(2, 1, 4, 4)
    left[..., :2] = 1
    assert objective.picture_errors(predicted, wanted).tolist() == [5.0, 5.0]
    assert objective.picture_errors(predicted, wanted, left).tolist() == [1.0, 1.0]
    assert objective.picture_errors(predicted, wanted, 0.5 * torch.ones_like(left)).tolist() == [5.0, 5.0]
    with pytest.raises(ValueError, match="mask: it is empty"):
        objective.picture_errors(predicted, wanted, torch.zeros_like(left))


def test_min_snr_weights_are_capped_and_finite_at_zero_terminal_snr():
    alpha_bar = torch.tensor([0.0, 0.5, 0.9])  # SNR 0, 1, 9
    assert close(objective.min_snr_weights(alpha_bar, 5.0, objective.EPSILON), torch.tensor([1.0, 1.0, 5 / 9]))
    assert close(objective.min_snr_weights(alpha_bar, 5.0, objective.VELOCITY), torch.tensor([0.0, 0.5, 0.5]))


def test_the_prior_is_added_with_its_weight():
    subject, prior = torch.tensor([1.0, 3.0]), torch.tensor([10.0])
    assert objective.prior_preserving(subject, prior, 0.5) == 7 and objective.prior_preserving(subject, None, 0.5) == 2


def test_a_lora_begins_with_the_plain_model_and_is_the_scaled_product_of_its_factors():
    base = {"a.weight": normal(6, 4).half(), "c.weight": normal(6, 4, 3, 3)}
    lora = Lora({name: value.shape for name, value in base.items()}, LoraSettings(2, 1.0), 1e-3, seeded())
    assert all(torch.equal(value, base[name]) and value.dtype == base[name].dtype
               for name, value in dense(base, lora.weights(base)).items())
    with torch.no_grad():
        for _, up in lora.factors().values():
            up.copy_(normal(*up.shape, seed=3))
    down, up = lora.factors()["c.weight"]
    assert down.shape == (2, 4, 3, 3) and up.shape == (6, 2)
    expected = base["c.weight"] + 0.5 * torch.einsum("or,rikl->oikl", up, down)
    assert close(dense(base, lora.weights(base))["c.weight"], expected)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    layer.weight.data, picture = expected - base["c.weight"], normal(2, 4, 9, 8, seed=5)
    assert close(lora.weights(base)["c.weight"].added(picture, layer), layer(picture) - layer.bias[:, None, None])
    low, x = lora.weights(base)["a.weight"], normal(5, 4, seed=6)
    assert close(low.added(x), F.linear(x, lora.differences()["a.weight"]))
    assert close(low.matrix(), lora.differences()["a.weight"])
    assert lora.size() == 2 * (4 + 6) + 2 * (36 + 6)
    with pytest.raises(ValueError, match="no rows and columns"):
        Lora({"bias": torch.Size([3])}, LoraSettings(), 1e-3, seeded())


@pytest.mark.parametrize("prediction", [objective.EPSILON, objective.VELOCITY])
@pytest.mark.parametrize("wanted", [{}, {"prior_weight": 0.3}, {"min_snr_gamma": 5.0}])
def test_the_loss_of_dreambooth_is_that_of_the_paper(prediction, wanted):
    dreambooth = recipe("full", model=Linear(prediction), **wanted)
    loss = dreambooth.loss(2, seeded(7))
    generator = seeded(7)
    subject, prior = dreambooth.subject_set.draw(2, generator), dreambooth.prior.draw(2, generator)
    clean = torch.cat([subject.latents, prior.latents])
    t = torch.randint(100, (4,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    kept = dreambooth.model.alpha_bars[t][:, None, None, None]
    text = dreambooth.model.encode(subject.captions + prior.captions)
    said = dreambooth.model.predict(kept.sqrt() * clean + (1 - kept).sqrt() * noise, t, text, {})
    truth = noise if prediction == objective.EPSILON else kept.sqrt() * noise - (1 - kept).sqrt() * clean
    squared = (said - truth).pow(2).mean((1, 2, 3))
    snr = (kept / (1 - kept)).flatten()
    weight = torch.ones(4) if "min_snr_gamma" not in wanted else snr.clamp(max=5) / (snr + (prediction == objective.VELOCITY))
    expected = (squared * weight)[:2].mean() + wanted.get("prior_weight", 1.0) * squared[2:].mean()
    assert close(loss, expected)


def test_pictures_of_two_sizes_are_learned_in_calls_of_their_own():
    subject_recipe = recipe()
    subject_recipe.prior = latents(-1.0, size=(4, 6))
    assert torch.isfinite(subject_recipe.loss(2, seeded()))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("text", [False, True])
def test_gradients_equal_finite_differences_and_reach_nothing_but_what_learns(kind, text):
    subject_recipe = recipe(kind, text)
    with torch.no_grad():
        for value in subject_recipe.learned.parameters():
            value.add_(0.1 * normal(*value.shape, seed=5))
    subject_recipe.loss(2, seeded(3)).backward()
    for value in subject_recipe.learned.parameters():
        place, step = value.grad.abs().argmax(), 1e-2
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                value.view(-1)[place] += sign * step
                losses.append(subject_recipe.loss(2, seeded(3)))
                value.view(-1)[place] -= sign * step
        assert torch.allclose(value.grad.view(-1)[place], (losses[0] - losses[1]) / (2 * step), rtol=1e-2)
    model = subject_recipe.model
    assert not any(value.requires_grad for part in (model.unet, model.text) for value in part.values())


def test_learning_makes_the_loss_smaller():
    subject_recipe = recipe("full")
    run = train(subject_recipe, TrainingSettings(steps=300, batch=4))
    assert sum(run.losses[-30:]) < 0.8 * sum(run.losses[:30])


CHOICES = [{}, {"average": 0.9}, {"accumulate": 3}, {"optimiser": OptimiserSettings(schedule=COSINE, warmup=3)},
           {"optimiser": OptimiserSettings(name=ADAFACTOR)}]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("stop", [1, 4, 11])
def test_a_run_that_is_stopped_and_begun_again_ends_bit_for_bit_as_one_that_never_was(tmp_path, choice, stop):
    chosen = TrainingSettings(steps=12, batch=2, **choice)
    whole, again = recipe(text=True), recipe(text=True)
    expected = train(whole, chosen)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "job", minutes=1e-9)

    def interrupt(training: Training) -> None:
        if training.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(text=True), chosen, checkpoint, interrupt)
    run = train(again, chosen, checkpoint)
    assert run.losses == expected.losses
    assert all(torch.equal(value, outcome(again)[name]) for name, value in outcome(whole).items())


def test_an_interrupt_inside_a_step_keeps_the_step_before(tmp_path):
    """The host's interrupt may be raised from within any operation of the model."""
    chosen = TrainingSettings(steps=8, batch=2, accumulate=2)
    whole, stopped, again = recipe(), recipe(), recipe()
    expected = train(whole, chosen)
    checkpoint, calls = Checkpoint(tmp_path / "state.safetensors", "job"), []
    predict = stopped.model.predict

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 10:  # the second half of the fifth step
            raise KeyboardInterrupt
        return predict(*arguments)

    stopped.model.predict = failing
    with pytest.raises(KeyboardInterrupt):
        train(stopped, chosen, checkpoint)
    assert state.read(checkpoint.path, "job")["step"] == 4
    assert train(again, chosen, checkpoint).losses == expected.losses


def breaking(broken_recipe: SubjectRecipe, broken: Callable[[int], bool]) -> SubjectRecipe:
    """A recipe whose model gives NaN in some of its calls, counted from 1."""
    predict, calls = broken_recipe.model.predict, []

    def predicted(noisy, *rest):
        calls.append(1)
        return predict(noisy, *rest) * (torch.nan if broken(len(calls)) else 1)

    broken_recipe.model.predict = predicted
    return broken_recipe


def test_a_run_gives_up_when_no_batch_has_a_finite_loss_and_leaves_the_weights_alone():
    broken_recipe = breaking(recipe("full"), lambda call: True)
    with pytest.raises(FloatingPointError, match=f"model: its prediction holds NaN.*at step 0.*{PATIENCE} batches"):
        train(broken_recipe, TrainingSettings(steps=3))
    assert not any(value.any() for value in outcome(broken_recipe).values())


@pytest.mark.parametrize("bad", [1, PATIENCE - 1])
def test_batches_without_a_finite_loss_are_left_out_and_the_run_reaches_its_last_step(bad):
    broken_recipe = breaking(recipe("full"), lambda call: 3 <= call < 3 + bad)
    run = train(broken_recipe, TrainingSettings(steps=6))
    assert run.step == len(run.losses) == 6 and run.skipped == bad and all(map(math.isfinite, run.losses))
    assert all(bool(torch.isfinite(value).all()) for value in outcome(broken_recipe).values())


def test_a_run_that_gave_up_draws_other_batches_when_it_is_begun_again(tmp_path):
    """The same generator must not give the same NaN for ever."""
    path, settings = tmp_path / "state.safetensors", TrainingSettings(steps=8)
    with pytest.raises(FloatingPointError):
        train(breaking(recipe("full"), lambda call: call > 3), settings, Checkpoint(path, "job"))
    drawn, kept = [], state.read(path, "job")
    assert kept["step"] == 3 and kept["skipped"] == PATIENCE and state.about(path).stuck
    again = recipe("full")
    predict = again.model.predict
    again.model.predict = lambda noisy, *rest: drawn.append(noisy) or predict(noisy, *rest)
    run = train(again, settings, Checkpoint(path, "job"))
    assert run.step == 8 and run.skipped == PATIENCE
    broken = []
    same = breaking(recipe("full"), lambda call: broken.append(call) or call > 3)
    seen, predict_same = [], same.model.predict
    same.model.predict = lambda noisy, *rest: seen.append(noisy) or predict_same(noisy, *rest)
    with pytest.raises(FloatingPointError):
        train(same, settings)
    assert not any(torch.equal(drawn[0], one) for one in seen[3:])


def test_what_is_not_finite_is_named():
    def failing(change) -> str:
        subject_recipe = recipe("full")
        change(subject_recipe)
        with pytest.raises(FloatingPointError) as error:
            train(subject_recipe, TrainingSettings(steps=1))
        return str(error.value)

    def text(subject_recipe):
        encode = subject_recipe.model.encode
        subject_recipe.model.encode = lambda *given: Conditioning(encode(*given).cross_attention * torch.inf)

    def latent(subject_recipe):
        subject_recipe.subject_set = latents(torch.nan, torch.nan)

    assert failing(text).startswith("clip: a caption") and failing(latent).startswith("vae: a picture as latents")
    assert failing(lambda subject_recipe: breaking(subject_recipe, lambda call: True)).startswith("model: its prediction")


def test_a_scale_stays_as_it_was_when_a_batch_is_not_finite_at_any_scale():
    scaled = recipe("full")
    scaled.scale, called = 1024.0, []
    loss = scaled.loss

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.inf

    def spoiling(*given):
        called.append(1)
        return Spoilt.apply(loss(*given)) if len(called) <= 11 else loss(*given)  # once at each scale from 1024 to 1

    scaled.loss = spoiling
    run = train(scaled, TrainingSettings(steps=2))
    assert run.skipped == 1 and run.scale == 1024 and run.step == 2


def test_a_run_goes_on_at_another_rate_from_the_state_that_it_is_given(tmp_path):
    path = tmp_path / "state.safetensors"
    stopped(path, at=3, steps=6)
    slower = recipe()
    slower.unet.rate = 1e-9
    settings = TrainingSettings(steps=6, optimiser=OptimiserSettings(schedule=LINEAR))
    run = Training(slower, settings)
    run.restore(state.read(path, "one"))
    before = outcome(slower)
    assert run.step == 3 and run.optimiser.param_groups[0]["lr"] == pytest.approx(0.5e-9)
    run.advance()
    assert run.optimiser.param_groups[0]["lr"] == pytest.approx(1e-9 * (1 - 4 / 6))
    assert all((value - before[name]).abs().max() < 1e-8 for name, value in outcome(slower).items())


def test_a_scale_that_is_too_large_is_halved_until_the_gradients_are_finite(tmp_path):
    plain, scaled = recipe("full"), recipe("full")
    scaled.scale = 2.0**130  # beyond float32 for every gradient
    expected, run = train(plain, TrainingSettings(steps=3)), train(scaled, TrainingSettings(steps=3))
    assert run.scale < 2.0**130 and run.losses == pytest.approx(expected.losses, rel=1e-4)


def test_rates_warm_up_and_fall():
    assert [rate_factor(step, 10, OptimiserSettings(warmup=3)) for step in (0, 2, 3, 9)] == [0.25, 0.75, 1.0, 1.0]
    assert rate_factor(5, 10, OptimiserSettings(schedule=LINEAR)) == 0.5
    assert rate_factor(5, 10, OptimiserSettings(schedule=COSINE)) == pytest.approx(0.5)
    assert rate_factor(10, 10, OptimiserSettings(schedule=COSINE)) == pytest.approx(0)


@pytest.mark.parametrize("settings_class, wrong, said", [
    (TrainingSettings, {"steps": 0}, "steps: 0 is outside"), (TrainingSettings, {"average": 1.0}, "average: 1.0 is outside"),
    (ObjectiveSettings, {"prior_weight": -1}, "prior_weight: -1"), (LoraSettings, {"rank": 0}, "rank: 0"),
    (OptimiserSettings, {"name": "SGD"}, "optimiser: 'SGD' is unknown"),
    (Preparation, {"step": 12}, "step: 12 is no multiple of 8")])
def test_settings_name_the_input_that_is_wrong(settings_class, wrong, said):
    with pytest.raises(ValueError, match=said):
        settings_class(**wrong)


def test_a_full_training_leaves_the_table_of_tokens_alone():
    full = full_of(Linear().text, 1e-3, ("embeddings.",))
    assert list(full.differences()) == ["self_attn.q_proj.weight"] and isinstance(full, Full) and isinstance(full, nn.Module)


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s left"), (89.0, "89 s left"), (90.0, "2 min left"),
                                               (3540.0, "59 min left"), (3900.0, "1 h 5 min left")])
def test_the_time_that_is_left_is_said_as_people_say_it(seconds, said):
    assert time_left(seconds) == said


def test_what_is_kept_on_the_way_is_the_average_and_the_weights_are_as_before():
    kept = []

    def look(training: Training) -> None:
        before = outcome(training.recipe)
        with training.as_finished():
            inside = outcome(training.recipe)
        assert all(torch.equal(value, outcome(training.recipe)[name]) for name, value in before.items())
        kept.append((before, inside))

    plain, looked = recipe(), recipe()
    chosen = TrainingSettings(steps=3, average=0.9)
    train(plain, chosen)
    train(looked, chosen, after_step=look)
    assert all(torch.equal(value, outcome(looked)[name]) for name, value in outcome(plain).items())
    before, inside = kept[-1]
    assert all(torch.equal(value, outcome(plain)[name]) for name, value in inside.items())
    assert any(not torch.equal(value, before[name]) for name, value in inside.items())


def test_a_job_keeps_what_is_to_be_kept_on_the_way(tmp_path):
    own = TrainingSet((Example(torch.zeros(3, 64, 64), ("a sks dog",)),), Naming("sks", "dog"), Preparation(64))
    options = TrainingOptions(keeping=Keeping(50, "my dog", ("a sks dog", "a dog")), details=Details(rank_dropout=0.1))
    file = job.Job("dog", job.TEXTUAL_INVERSION, job.TOYBOX, own, None, job.Choices(), options.training(2, 1, 0, False), options,
                   {}).write(tmp_path)
    assert job.read(file).options == options
    said = json.loads(file.read_text(encoding="utf-8"))
    del said["keeping"], said["details"]
    file.write_text(json.dumps(said), encoding="utf-8")
    assert job.read(file).options.details == Details(), "nor has it finer choices"
    assert job.read(file).options.keeping == Keeping(), "a job of an earlier version keeps nothing"
