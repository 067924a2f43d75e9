"""The parts that every Toybox training relies on: a schedule that ends at rest, and checkpoints that resume exactly."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from toybox.making import captions
from toybox.making.captions import ANSWERS, Captions, facts_of, told
from toybox.making.dataset import Dataset, picture
from toybox.making.material import material, middles
from toybox.making.muon import Muon, orthogonal
from toybox.making.optimisation import Run, as_matrix, rate_factor
from toybox.world import CAPTION_RATES, caption


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
    def loss() -> torch.Tensor:
        x = torch.randn(4, 3, 8, 8)
        return (run.model(x) - x.flip(1)).square().mean()

    step = run.stepper(loss)
    while run.step < until:
        run.advance(step)


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


def test_muon_in_batches_makes_the_steps_of_torchs_own():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24), (16, 16)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([value.clone() for value in start] for _ in range(2))
    mine = Muon(ours, torch.tensor(0.02), weight_decay=0.01)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for one, another in zip(ours, theirs):
            one.grad = torch.randn(one.shape, generator=generator)
            another.grad = one.grad.clone()
        mine.step()
        other.step()
    for one, another, begun in zip(ours, theirs, start):
        assert (one - another).norm() < 0.01 * (another - begun).norm(), "bfloat16 rounds differently in batches"


def test_what_muon_steps_along_is_about_orthogonal():
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(1))).float())
    assert values.min() > 0.4 and values.max() < 1.6


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
    x = torch.randn(16, 3, 8, 8)

    def error() -> torch.Tensor:
        return (run.model(x) - x.flip(1)).square().mean()

    start = error()
    go_on(run, 400)
    run.finish()
    assert error() < start / 10
    assert all(torch.equal(value, mean) for value, mean in zip(run.parameters, run.averages[0].mean))


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    run = Run("a", tmp_path, small_model(), 3, 1e-2)
    step = run.stepper(lambda: run.model(torch.full((1, 3, 8, 8), float("nan"))).sum())
    with pytest.raises(FloatingPointError, match="the loss is nan at step 3"):
        while run.step < run.steps:
            run.advance(step)
    assert not run.path.exists()


@pytest.fixture(scope="module")
def words() -> tuple[Captions, list[str]]:
    """All captions with one number for each word, and their texts."""
    seen: list[str] = []

    def tokenize(text: str) -> dict:
        seen.append(text)
        numbers = [999, *(hash(word) % 900 for word in text.split()), 1000]
        return {"l": [[(number, 1.0) for number in numbers + [1000] * (77 - len(numbers))]]}

    return Captions(tokenize, torch.device("cpu")), seen


def test_a_captions_number_is_that_of_the_sentence_that_tells_its_facts(words):
    table, sentences = words
    rng = random.Random(0)
    for index in range(40):
        shown = picture(index)
        facts = facts_of(shown.subject, shown.pose, shown.scene)
        kept = [1, *(rng.random() < 0.5 for _ in range(3))]
        number = int(table.numbers(torch.tensor([[fact * keep for fact, keep in zip(facts, kept)]]))[0])
        assert sentences[number] == caption(shown.subject, colours=bool(kept[1]), facing=shown.pose.facing if kept[2] else None,
                                            scene=shown.scene.name if kept[3] else None)
    assert len(sentences) == len(list(product(*ANSWERS))) + 1 and sentences[table.empty] == ""
    assert int(table.ends[table.empty]) == 1


def test_captions_leave_facts_out_at_the_worlds_rates():
    torch.manual_seed(0)
    shares = (told(torch.ones(20_000, 4, dtype=torch.long)) > 0).float().mean(0)
    assert shares.tolist() == pytest.approx([1.0, *(CAPTION_RATES[name] for name in ("colours", "facing", "scene"))], abs=0.02)


@pytest.fixture(scope="module")
def data() -> Dataset:
    shown = [picture(index) for index in range(400)]
    labels = np.random.default_rng(0).integers(0, 9, (400, 128, 128)).astype(np.uint8)
    return Dataset(np.zeros((400, 1, 1, 3), np.uint8), labels, shown)


def test_the_label_of_a_cell_is_the_one_in_its_middle(data):
    cells = middles(torch.from_numpy(data.labels), 16)
    assert torch.equal(cells, torch.from_numpy(data.labels[:, 4::8, 4::8]))


def test_pairs_show_two_pictures_of_like_subjects_and_a_caption_that_tells_the_class_alone(data):
    latents = torch.arange(400.0)[:, None, None, None].expand(400, 4, 16, 16).half()
    pictures = material(data, latents, (8, 16), 8190, torch.device("cpu"))
    torch.manual_seed(0)
    pairs, classes = pictures.pairs(300), set()
    assert pairs.clean.shape == (300, 4, 16, 32) and pairs.parts[8].shape == (300, 8, 16)
    for left, right, number in zip(pairs.clean[:, 0, 0, 0].int(), pairs.clean[:, 0, 0, -1].int(), pairs.captions):
        one, other = data.shown[left].subject, data.shown[right].subject
        assert left != right and (one.kind, one.colour_names) == (other.kind, other.colour_names)
        classes.add(one.kind)
        assert int(number) in (8190, Captions.numbers(torch.tensor([[captions.KINDS.index(one.kind), 0, 0, 0]]))[0])
    assert len(classes) == 5
    assert 0.05 < (pairs.captions == 8190).float().mean() < 0.2
