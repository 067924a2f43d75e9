"""SeFi-IDE by itself: stages, the producer and its table, and the attention loss in closed form."""

from __future__ import annotations

import pytest
import torch
from closeness import close
from hypothesis import given
from hypothesis import strategies as st
from small_training import seeded

from dreammatcher.sefi.attention_loss import (
    REDUCTION,
    SUMMED,
    AttentionLoss,
    attention_maps,
    map_difference,
    reference_prompt,
)
from dreammatcher.sefi.learned import SeFi
from dreammatcher.sefi.stages import Producer, Table, spans, stage_of

pytestmark = pytest.mark.usefixtures("gradients")


@pytest.mark.parametrize(("timestep", "stage"), [(0, 0), (199, 0), (200, 1), (399, 1), (400, 2), (800, 4), (999, 4)])
def test_five_equal_stages_of_the_timesteps(timestep, stage):
    assert stage_of(timestep, 5) == stage


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_outside_of_the_schedule_is_refused(timestep):
    with pytest.raises(ValueError, match=f"{timestep} is outside 0..999"):
        stage_of(timestep, 5)


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_spans_cover_every_timestep_once_and_no_stage_changes_inside(counts):
    ranges = spans(tuple(counts))
    assert [t for start, end in ranges for t in range(start, end + 1)] == list(range(1000))
    for start, end in ranges:
        assert all(stage_of(start, count) == stage_of(end, count) for count in counts)
    assert len(ranges) <= sum(counts) - len(counts) + 1


def test_the_producer_makes_two_vectors_of_each_stage_and_its_table_is_what_it_makes():
    producer = Producer(torch.randn(1, 96, generator=seeded()), 5, True, 1e-4, seeded(1))
    keys, values = producer.table()
    assert keys.shape == values.shape == (5, 96) and not torch.equal(keys, values)
    assert all(torch.equal(*pair) for pair in zip(producer.table(), (keys, values))), "without dropout it is constant"
    dropped = producer.table(seeded(2))[0]
    assert not torch.equal(dropped, keys) and torch.equal(dropped, producer.table(seeded(2))[0])
    assert Producer(torch.zeros(1, 96), 3, False, 1e-4, seeded()).table()[0].shape == (3, 96)


def test_at_the_size_of_the_paper_the_producer_has_the_parameters_that_matter():
    producer = Producer(torch.zeros(1, 768), 5, True, 1e-4, seeded())
    queries_and_keys = 2 * 2 * 768 * 512
    assert sum(value.numel() for value in producer.parameters()) + queries_and_keys == pytest.approx(31.48e6, rel=0.01)


def test_attention_to_a_sequence_of_one_is_the_value_itself():
    x = torch.randn(1, 1, 96, generator=seeded())
    full = torch.nn.MultiheadAttention(96, 8, batch_first=True)
    value = x @ full.in_proj_weight[192:].T + full.in_proj_bias[192:]
    assert close(full(x, x, x)[0], full.out_proj(value))


def test_the_table_begins_as_the_coarse_word_and_shares_vectors_where_it_is_not_split():
    word = torch.randn(1, 96, generator=seeded())
    split, shared = Table(word, 5, True, 1e-3), Table(word, 5, False, 1e-3)
    assert all(torch.equal(part, word.expand(5, -1)) for part in split.table())
    assert shared.table()[0] is shared.table()[1] and len(list(shared.parameters())) == 1


def test_maps_are_a_softmax_over_the_tokens():
    queries, keys = torch.randn(2, 4, 9, 8, generator=seeded()), torch.randn(2, 4, 7, 8, generator=seeded(1))
    maps = attention_maps(queries, keys)
    assert maps.shape == (2, 4, 9, 7) and close(maps.sum(-1), torch.ones(2, 4, 9))
    expected = (queries[1, 2] @ keys[1, 2].T / 8**0.5).softmax(-1)
    assert close(maps[1, 2], expected)


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum over patches", 9), ("sum over patches and tokens", 63)])
def test_reductions_differ_by_what_they_sum(reduction, factor):
    maps, wanted = torch.rand(2, 4, 9, 7, generator=seeded()), torch.rand(2, 4, 9, 7, generator=seeded(1))
    assert float(map_difference(maps, wanted, reduction)) == pytest.approx(factor * float((maps - wanted).square().mean()))
    assert set(SUMMED) >= {reduction, REDUCTION}


def test_the_gradient_reaches_the_learned_keys_and_not_the_known_ones():
    maps, wanted = (torch.rand(1, 1, 4, 3, generator=seeded(seed)).requires_grad_() for seed in (0, 1))
    map_difference(maps, wanted, REDUCTION).backward()
    assert maps.grad.any() and wanted.grad is None


def test_the_reference_prompt_has_the_known_word_in_the_learned_one_s_place():
    assert reference_prompt("a photo of <me> and risks", "<me>", " person ") == "a photo of person and risks"
    assert reference_prompt("sks at risks", "sks", "dog") == "dog at risks"


@pytest.mark.parametrize(("wrong", "said"), [
    (dict(class_word=" "), "class_word: it is empty"), (dict(class_word="dog", weight=-1), "attention_weight: -1 is outside"),
    (dict(class_word="dog", reduction="max"), "'max' is unknown; choose one of")])
def test_a_loss_that_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        AttentionLoss(**wrong)


@pytest.mark.parametrize(("keys", "values", "said"), [
    (torch.zeros(5, 8), torch.zeros(4, 8), "different shapes"), (torch.full((5, 8), float("nan")), torch.zeros(5, 8), "NaN"),
    (torch.zeros(8), torch.zeros(8), "not stages x width")])
def test_vectors_that_are_no_subject_are_refused(keys, values, said):
    with pytest.raises(ValueError, match=said):
        SeFi(keys, values)


def test_the_fallback_is_the_mean_of_the_keys():
    keys = torch.randn(5, 8, generator=seeded())
    assert close(SeFi(keys, keys).fallback(), keys.mean(0)[None])
