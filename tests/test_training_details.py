"""The finer choices of a training: each in closed form, without effect at its default, refused where it can do nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from closeness import close
from small_training import Linear, latents, normal, outcome, seeded

from dreammatcher.training import objective
from dreammatcher.training.data import LatentSet, Prepared, changed
from dreammatcher.training.details import (
    CONSTANT,
    EARLY,
    EXPONENTIAL,
    HUBER,
    HUBER_SCHEDULES,
    LATE,
    LOGIT_NORMAL,
    LOSSES,
    SMOOTH_L1,
    SNR,
    SQUARED,
    TIMES,
    UNIFORM,
    CaptionChanges,
    Details,
    Layers,
    Noise,
    TextEncoder,
    Uses,
    details_of,
)
from dreammatcher.training.dreambooth import lora_of
from dreammatcher.training.loop import Training, train
from dreammatcher.training.parallel import Share
from dreammatcher.training.recipe import SubjectRecipe
from dreammatcher.training.settings import LoraSettings, ObjectiveSettings, OptimiserSettings, TrainingOptions, TrainingSettings

pytestmark = pytest.mark.usefixtures("gradients")


PLAIN_NOISE, PLAIN_CAPTIONS = Noise(), CaptionChanges()


def recipe(noise: Noise = PLAIN_NOISE, changes: CaptionChanges = PLAIN_CAPTIONS, dropout: float = 0.0, until: float = 1.0,
           text_rate: float = 1e-2, rank: int = 2) -> SubjectRecipe:
    model = Linear()
    unet = lora_of(model.unet, ("to_q.weight",), LoraSettings(rank), 1e-2, seeded(), dropout)
    text = lora_of(model.text, ("q_proj.weight",), LoraSettings(rank), text_rate, seeded(1), dropout)
    text.until = until
    captions = ("sks dog, lake, noise, oil", "sks dog, a bee, io")
    pictures = replace(latents(1.0, 2.0, captions=captions), changes=changes)
    return SubjectRecipe(model, pictures, ObjectiveSettings(noise=noise), unet=unet, text=text)


def gradients(trained: SubjectRecipe, steps: int = 3) -> torch.Tensor:
    """Of every number that learns, after steps that have moved both factors."""
    training = Training(trained, TrainingSettings(steps=steps, batch=2))
    for _ in range(steps - 1):
        training.advance()
    trained.loss(2, seeded(5)).backward()
    return torch.cat([value.grad.flatten() for value in trained.learned.parameters()])


PLAIN = gradients(recipe())


@pytest.mark.parametrize("chosen", [
    {"noise": Noise(offset=0.1)}, {"noise": Noise(loss=HUBER)}, {"noise": Noise(loss=SMOOTH_L1)},
    {"noise": Noise(times=EARLY)}, {"noise": Noise(times=LATE)}, {"noise": Noise(times=LOGIT_NORMAL)},
    {"changes": CaptionChanges(dropout=0.5)}, {"dropout": 0.5}, {"text_rate": 1e-1}])
def test_every_choice_changes_the_gradient_but_for_its_default(chosen):
    assert torch.equal(gradients(recipe()), PLAIN)
    other = gradients(recipe(**chosen))
    assert not torch.allclose(other, PLAIN, rtol=1e-3)


# the objective

def test_noise_moves_each_channel_as_a_whole_by_the_offset():
    noise = normal(2, 4, 8, 8)
    moved = objective.offset_noise(noise, 0.3, seeded(7)) - noise
    assert torch.allclose(moved, (0.3 * torch.randn(2, 4, 1, 1, generator=seeded(7))).expand_as(moved), atol=1e-6)
    many = objective.offset_noise(torch.zeros(500, 40, 1, 1), 0.3, seeded())
    assert float(many.std()) == pytest.approx(0.3, rel=0.03) and abs(float(many.mean())) < 0.01


def test_the_offset_is_part_of_the_noise_that_is_predicted():
    trained = recipe(noise=Noise(offset=0.5))
    loss = trained.loss(2, seeded(7))
    generator = seeded(7)
    drawn = trained.subject_set.draw(2, generator)
    t = torch.randint(100, (2,), generator=generator)
    noise = torch.randn(drawn.latents.shape, generator=generator)
    noise = noise + 0.5 * torch.randn(2, 4, 1, 1, generator=generator)
    kept = trained.model.alpha_bars[t][:, None, None, None]
    noisy = kept.sqrt() * drawn.latents + (1 - kept).sqrt() * noise
    said = trained.model.predict(noisy, t, trained.model.encode(drawn.captions), {})
    assert close(loss, (said - noise).square().mean())


@pytest.mark.parametrize(("times", "share_below"), [
    (UNIFORM, lambda x: x), (EARLY, lambda x: 1 - (1 - x) ** (1 / 3)), (LATE, lambda x: x ** (1 / 3)),
    (LOGIT_NORMAL, lambda x: torch.special.ndtr(torch.tensor(x).logit()))])
def test_timesteps_are_distributed_as_they_are_said_to_be(times, share_below):
    drawn = objective.timesteps_of(40_000, 1000, times, seeded(3))
    assert drawn.dtype == torch.int64 and drawn.min() >= 0 and drawn.max() <= 999
    for x in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert float((drawn < 1000 * x).float().mean()) == pytest.approx(float(share_below(x)), abs=0.01)


def test_even_timesteps_are_those_that_were_always_drawn():
    assert torch.equal(objective.timesteps_of(9, 1000, UNIFORM, seeded(4)), torch.randint(1000, (9,), generator=seeded(4)))


@pytest.mark.parametrize("c", [0.05, 0.4])
def test_a_robust_loss_is_squared_for_small_errors_and_even_for_large_ones(c):
    thresholds = torch.tensor([c])
    small, large = torch.full((1, 1, 2, 2), 1e-2 * c, dtype=torch.float64), torch.full((1, 1, 2, 2), 1e3, dtype=torch.float64)
    zero = torch.zeros_like(small)
    for loss, at_small, at_large in ((HUBER, 1.0, 2 * c), (SMOOTH_L1, 1 / c, 2.0)):
        # 2 c (sqrt(d^2 + c^2) - c) is d^2 next to zero and 2 c |d| far from it; smooth L1 is that without the factor c
        assert float(objective.elementwise(small - zero, loss, thresholds).mean()) == pytest.approx(
            at_small * (1e-2 * c) ** 2, rel=1e-3)
        assert float(objective.elementwise(large - zero, loss, thresholds).mean()) == pytest.approx(at_large * 1e3, rel=2e-3)
    exact = 2 * c * ((0.3**2 + c**2) ** 0.5 - c)
    assert float(objective.elementwise(torch.full((1, 1), 0.3), HUBER, thresholds)) == pytest.approx(exact, rel=1e-5)
    assert float(objective.elementwise(torch.full((1, 1), 0.3), SQUARED, None)) == pytest.approx(0.09)


def test_the_threshold_follows_its_schedule():
    alpha_bar, timesteps = torch.tensor([0.99, 0.5, 0.01]), torch.tensor([0, 500, 1000])
    how = Noise(loss=HUBER, huber_c=0.1)
    assert objective.huber_thresholds(replace(how, loss=SQUARED), alpha_bar, timesteps, 1000) is None
    at = {name: objective.huber_thresholds(replace(how, huber_schedule=name), alpha_bar, timesteps, 1000)
          for name in HUBER_SCHEDULES}
    assert close(at[CONSTANT], torch.full((3,), 0.1))
    assert torch.allclose(at[EXPONENTIAL], torch.tensor([1.0, 0.1**0.5, 0.1]))
    sigma = (0.5 / 0.5) ** 0.5
    assert float(at[SNR][1]) == pytest.approx(0.9 / (1 + sigma) ** 2 + 0.1)
    assert at[SNR][0] > at[SNR][1] > at[SNR][2] > 0.1
    assert torch.isfinite(objective.huber_thresholds(how, torch.zeros(1), torch.tensor([999]), 1000)).all()


def test_a_robust_loss_counts_within_the_mask_alone():
    predicted, wanted, mask = normal(2, 4, 4, 4), normal(2, 4, 4, 4, seed=1), torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    c = torch.tensor([0.1, 0.3])
    expected = objective.elementwise(predicted - wanted, HUBER, c)[..., :2].flatten(1).mean(1)
    assert close(objective.picture_errors(predicted, wanted, mask, HUBER, c), expected)


# captions

def drawn_captions(changes: CaptionChanges, caption: str, count: int = 4000) -> list[str]:
    generator = seeded(2)
    return [changed(caption, changes, generator) for _ in range(count)]


def test_captions_are_left_empty_as_often_as_is_said():
    drawn = drawn_captions(CaptionChanges(dropout=0.2), "a photo of a sks dog")
    assert set(drawn) == {"", "a photo of a sks dog"}
    assert drawn.count("") / len(drawn) == pytest.approx(0.2, abs=0.02)


def test_tags_come_in_every_order_and_the_first_ones_stay():
    drawn = drawn_captions(CaptionChanges(shuffle=True, keep=1), "sks dog, lake,  sun , oil")
    orders = {text: drawn.count(text) / len(drawn) for text in set(drawn)}
    assert len(orders) == 6 and all(share == pytest.approx(1 / 6, abs=0.03) for share in orders.values())
    assert all(text.startswith("sks dog, ") and sorted(text.split(", ")) == ["lake", "oil", "sks dog", "sun"] for text in drawn)
    assert len(set(drawn_captions(CaptionChanges(shuffle=True, keep=0), "a, b, c"))) == 6
    assert set(drawn_captions(CaptionChanges(shuffle=True, keep=3), "a, b,  c")) == {"a, b,  c"}


@pytest.mark.parametrize("draw", ["draw", "draw_with_references"])
def test_every_way_to_draw_pictures_changes_their_captions(draw):
    pictures = LatentSet((Prepared(torch.ones(1, 4, 4, 4), None, ("a, b",)),) * 2, CaptionChanges(dropout=0.9))
    batch = getattr(pictures, draw)(8, seeded())
    assert "" in (batch if draw == "draw" else batch[0]).captions


def test_captions_that_do_not_change_draw_no_random_numbers():
    generator = seeded()
    changed("a, b, c", CaptionChanges(), generator)
    assert torch.equal(generator.get_state(), seeded().get_state())


# what learns

@pytest.mark.parametrize("dropout", [0.25, 0.5])
def test_ranks_are_left_out_of_a_step_and_the_mean_stays(dropout):
    lora = lora_of({"to_q.weight": torch.zeros(6, 5)}, ("to_q.weight",), LoraSettings(4, 2.0), 1e-2, seeded(), dropout)
    with torch.no_grad():
        lora.factors()["to_q.weight"][1].copy_(normal(6, 4, seed=9))
    whole, generator = lora.low_rank()["to_q.weight"].matrix(), seeded(1)
    steps = [lora.weights({}, generator)["to_q.weight"].matrix().detach() for _ in range(3000)]
    ranks = torch.tensor([torch.linalg.matrix_rank(one) for one in steps[:400]]).float()
    assert float(ranks.mean()) == pytest.approx(4 * (1 - dropout), rel=0.1)
    assert (torch.stack(steps).mean(0) - whole).norm() < 0.06 * whole.norm()
    assert close(lora.weights({})["to_q.weight"].matrix(), whole), "nothing is left out of a sample, or of what is saved"


@pytest.mark.parametrize(("until", "last"), [(1.0, 10), (0.5, 5), (0.29, 3), (0.01, 1)])
def test_the_text_encoder_stops_at_its_share_of_the_steps_and_stays_bit_for_bit(until, last):
    trained = recipe(until=until)
    states, gradients = [], []

    def look(training: Training) -> None:
        states.append({name: value for name, value in outcome(trained).items() if name.startswith("text")})
        gradients.append([value.requires_grad for value in trained.text.parameters()])

    train(trained, TrainingSettings(steps=10, batch=2, optimiser=OptimiserSettings(weight_decay=0.5)), after_step=look)
    moved = [any(not torch.equal(value, before[name]) for name, value in now.items())
             for before, now in zip(states, states[1:])]
    assert moved == [step < last for step in range(1, 10)]
    assert [any(one) for one in gradients] == [step < last for step in range(10)]
    assert all(value.requires_grad for value in trained.unet.parameters())


def test_a_stopped_text_encoder_sends_nothing_to_other_processes_and_ends_the_same():
    sent = []

    def mean(value: torch.Tensor) -> torch.Tensor:
        sent.append(value.numel())
        return value

    trained, alone = recipe(until=0.5), recipe(until=0.5)
    both = Training(trained, TrainingSettings(steps=4, batch=1), share=Share(0, 2, mean))
    for _ in range(4):
        both.advance()
    gradients = [count for count in sent if count > 1]
    assert gradients[0] == sum(value.numel() for value in trained.learned.parameters())
    assert gradients[-1] == sum(value.numel() for value in trained.unet.parameters())
    train(alone, TrainingSettings(steps=4, batch=2))
    assert outcome(alone).keys() == outcome(trained).keys()


def test_text_encoder_and_unet_learn_at_rates_of_their_own():
    plain, faster = recipe(), recipe(text_rate=5e-2)
    before = outcome(plain)
    for one in (plain, faster):
        train(one, TrainingSettings(steps=1, batch=2, optimiser=OptimiserSettings(weight_decay=0.0)))
    for name, value in outcome(plain).items():
        moved, other = value - before[name], outcome(faster)[name] - before[name]
        assert torch.allclose(other, (5 if name.startswith("text") else 1) * moved, rtol=1e-3, atol=1e-7)


# all of them

OTHER = Details(TextEncoder(1e-5, 0.5), Layers(True, True, True, True, ("IN04", "M00")), 0.2,
                Noise(0.1, HUBER, 0.2, EXPONENTIAL, LATE), CaptionChanges(0.1, True, 2), True)


def test_choices_travel_as_json_and_the_defaults_as_nothing():
    assert Details().described() == {} and details_of({}) == Details()
    assert details_of(json.loads(json.dumps(OTHER.described()))) == OTHER
    assert all(value != asdict(Details())[name] for name, value in asdict(OTHER).items())


def test_options_hand_the_noise_on_to_the_objective():
    options = TrainingOptions(min_snr_gamma=5.0, details=OTHER)
    assert options.objective(0.5, True) == ObjectiveSettings(0.5, 5.0, True, OTHER.noise)


@pytest.mark.parametrize(("chosen", "name"), [
    (Details(TextEncoder(rate=1e-5)), "text_rate"), (Details(TextEncoder(until=0.5)), "text_until"),
    (Details(layers=Layers(feed_forward=True)), "feed_forward"), (Details(layers=Layers(blocks=("M00",))), "blocks"),
    (Details(rank_dropout=0.1), "rank_dropout"), (Details(captions=CaptionChanges(dropout=0.1)), "caption_dropout")])
def test_a_choice_that_would_do_nothing_is_refused_by_its_name(chosen, name):
    with pytest.raises(ValueError, match=f"{name}.*: ViCo cannot use this option of Training Details .DreamMatcher."):
        Uses("ViCo", wordless=False).check(chosen)
    Uses("DreamBooth", lora=True, text=True).check(chosen)
    Uses("ViCo", wordless=False).check(Details())


@pytest.mark.parametrize(("make", "said"), [
    (lambda: TextEncoder(-1), "text_rate: -1"), (lambda: TextEncoder(0, 0), "text_until: 0 .*turn text_encoder off"),
    (lambda: Noise(offset=2), "noise_offset: 2"), (lambda: Noise(loss="L3"), f"loss: 'L3' is unknown.*{LOSSES[0]}"),
    (lambda: Noise(times="now"), f"timesteps: 'now' is unknown.*{TIMES[0]}"), (lambda: Noise(huber_c=0), "huber_c: 0"),
    (lambda: CaptionChanges(dropout=1), "caption_dropout: 1"), (lambda: Details(rank_dropout=1), "rank_dropout: 1")])
def test_a_number_out_of_its_range_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
