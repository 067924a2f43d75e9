"""Descriptors, foreground and injection."""

from __future__ import annotations

import pytest
import torch
from closeness import close
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from dreammatcher.attention import attention_columns, foreground, otsu, repeated_columns, shared_attention_columns
from dreammatcher.matching.appearance import blend, match_appearance, trusted
from dreammatcher.matching.correspondence import confidence, match, warp
from dreammatcher.matching.descriptors import descriptors, principal_directions, resize


def tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pyramid(seed, coarse=(4, 6), fine=(8, 12), batch=1):
    return [tensor(batch, 12, *coarse, seed=seed), tensor(batch, 8, *fine, seed=seed + 1)]


def test_injection_with_a_zero_mask_equals_the_layer_bit_for_bit():
    value, other = tensor(2, 30, 8), tensor(1, 30, 8, seed=1) * torch.inf
    out = match_appearance(value, other, torch.zeros(2, 30, dtype=torch.long), torch.zeros(2, 1, 5, 6))
    assert torch.equal(out, value)


def test_injection_with_a_full_mask_is_the_warped_reference():
    value, reference = tensor(1, 30, 8), tensor(1, 30, 8, seed=1)
    indices = torch.randperm(30, generator=torch.Generator().manual_seed(2))[None]
    assert torch.equal(match_appearance(value, reference, indices, torch.ones(1, 1, 5, 6)), reference[:, indices[0]])


def test_injecting_before_the_value_projection_equals_injecting_after_it():
    to_v = torch.nn.Linear(16, 24, bias=False).double()
    target, reference = tensor(2, 35, 16).double(), tensor(1, 35, 16, seed=1).double()
    indices = torch.randint(0, 35, (2, 35), generator=torch.Generator().manual_seed(3))
    weight = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(4)).double()
    before = to_v(match_appearance(target, reference, indices, weight))
    after = match_appearance(to_v(target), to_v(reference), indices, weight)
    assert (before - after).abs().max() < 1e-12


def test_a_reference_identical_to_the_target_changes_nothing():
    features = pyramid(0)
    source, wanted = descriptors(features, features, pca=None)
    matches = match(source, wanted)
    mask = torch.full((1, 1, 8, 12), 0.7)
    value = tensor(1, 96, 5)
    weight = trusted(mask, confidence(matches, mask))
    assert weight.min() == pytest.approx(0.7)
    assert close(match_appearance(value, value, matches.indices, weight), value)


def test_strength_scales_the_blend_linearly():
    value, warped, weight = tensor(1, 12, 4), tensor(1, 12, 4, seed=1), torch.ones(1, 1, 3, 4)
    half = blend(value, warped, trusted(weight, weight, 0.5))
    assert close(half, (value + warped) / 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 1, 3, 64]))
def test_descriptors_of_any_sizes_are_unit_vectors_on_the_finest_grid(h, w, th, tw, pca):
    reference, target = pyramid(0, (h, w), (2 * h, 2 * w)), pyramid(5, (th, tw), (2 * th, 2 * tw), batch=2)
    source, wanted = descriptors(reference, target, pca=pca)
    assert source.shape[0] == wanted.shape[0] == 2
    assert source.shape[2:] == (2 * h, 2 * w) and wanted.shape[2:] == (2 * th, 2 * tw)
    assert torch.isfinite(wanted).all() and source.shape[1] == wanted.shape[1]
    norms = wanted.norm(dim=1)
    assert close(norms[norms > 0.1], torch.ones_like(norms[norms > 0.1]))


def test_without_a_projection_every_channel_of_a_tiny_picture_counts():
    """Fewer places than channels: no descriptor may hold memory that nobody wrote."""
    reference, target = pyramid(0, (1, 1), (1, 1)), pyramid(5, (1, 1), (1, 1))
    source, wanted = descriptors(reference, target, pca=None)
    assert source.shape[1] == wanted.shape[1] == sum(scale.shape[1] for scale in target)
    assert close(wanted, -source), "two places, centred on their mean"


def test_the_full_rank_projection_keeps_every_cosine():
    reference, target = pyramid(0), pyramid(7)
    plain, projected = descriptors(reference, target, pca=None), descriptors(reference, target, pca=12)
    cosines = [torch.einsum("bchw,bcij->bhwij", *pair) for pair in (plain, projected)]
    assert close(*cosines)


def test_the_projection_is_the_same_twice_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (descriptors(pyramid(0), pyramid(7), pca=4) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_the_principal_directions_hold_as_much_as_the_exact_ones():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 60, generator=generator) * torch.linspace(1, 0.05, 60) ** 2
    directions = principal_directions(x, 12)
    assert close(directions.T @ directions, torch.eye(12))
    exact = torch.linalg.svdvals(x)[:12].pow(2).sum()
    assert 0.98 * exact < (x @ directions).pow(2).sum() <= exact * 1.0001


def test_batch_rows_are_described_as_if_they_were_alone():
    together = descriptors(pyramid(0), pyramid(7, batch=3), pca=5)[1]
    alone = [descriptors(pyramid(0), [x[row:row + 1] for x in pyramid(7, batch=3)], pca=5)[1] for row in range(3)]
    assert close(together, torch.cat(alone))


def test_attention_columns_are_the_softmax_of_the_layer():
    query, key = tensor(2, 9, 12), tensor(2, 7, 12, seed=1)
    q, k = (rearrange(x, "b n (h d) -> b h n d", h=3) for x in (query, key))
    expected = (q @ k.transpose(-1, -2) * 4**-0.5).softmax(-1).mean(1)[..., [2, 5]].sum(-1)
    assert close(attention_columns(query, key, 3, [2, 5]), expected)


def test_shared_attention_columns_are_the_softmax_of_the_whole_sequence_also_where_heads_share_keys():
    query, key = tensor(2, 4, 9, 6), tensor(2, 2, 13, 6, seed=1)
    expected = (query @ key.repeat_interleave(2, 1).mT * 6**-0.5).softmax(-1).mean(1)[..., [2, 5]].sum(-1)
    assert close(shared_attention_columns(query, key, [2, 5]), expected)
    same = attention_columns(rearrange(query, "b h n d -> b n (h d)"), rearrange(query, "b h n d -> b n (h d)"), 4, [3])
    assert close(shared_attention_columns(query, query, [3]), same)
    with pytest.raises(ValueError, match="columns .13. do not fit a sequence of 13"):
        shared_attention_columns(query, key, [13])


def test_a_context_that_repeats_the_prompt_repeats_the_columns():
    assert repeated_columns((2, 3), 77, 231) == [2, 3, 79, 80, 156, 157]


def test_tokens_that_another_pack_appends_are_not_the_subject():
    assert repeated_columns((2, 3), 77, 81) == [2, 3]


def test_columns_outside_the_text_are_refused():
    with pytest.raises(ValueError, match="columns .9. do not fit a text of 7"):
        attention_columns(tensor(1, 4, 8), tensor(1, 7, 8), 2, [9])


def test_the_foreground_spans_zero_to_one_and_knows_nothing_of_a_flat_map():
    maps = torch.stack((torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(0)), torch.full((1, 5, 6), 0.3)))
    soft = foreground([maps, maps * 0.5], (10, 12))
    assert soft[0].min() == 0 and soft[0].max() == 1
    assert torch.equal(soft[1], torch.zeros(1, 10, 12))


def test_otsu_splits_two_modes_between_them():
    low, high = torch.full((1, 1, 4, 4), 0.1), torch.full((1, 1, 4, 4), 0.8)
    mixed = torch.cat((low, high), 3) + 0.01 * tensor(1, 1, 4, 8)
    assert torch.equal(otsu(mixed.clamp(0, 1)), torch.cat((torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)), 3))


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (13, 27)])
def test_otsu_equals_kornias_picture_by_picture(size):
    from kornia.filters import otsu_threshold

    noise = torch.rand(6, 1, *size, generator=torch.Generator().manual_seed(4))
    peak = torch.linspace(0, 1, size[1]).expand(1, 1, *size)
    maps = torch.cat((noise, noise**3, (peak + 0.3 * noise).clamp(0, 1)))
    _, thresholds = otsu_threshold(maps, nbins=64)
    assert torch.equal(otsu(maps), (maps > thresholds.reshape(-1, 1, 1, 1)).float())
    assert all(torch.equal(otsu(maps)[number], otsu(maps[number:number + 1])[0]) for number in range(len(maps)))


def test_otsu_of_a_constant_map_is_empty_and_of_a_broken_one_is_no_error():
    assert not otsu(torch.full((1, 1, 5, 4), 0.4)).any()
    assert otsu(torch.full((1, 1, 5, 4), torch.nan)).shape == (1, 1, 5, 4)


def test_known_warps_of_the_value_grid_are_undone():
    value = tensor(1, 6, 8, 8)
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0] = 7 - 2 * torch.arange(8.0)
    assert close(warp(value, flow), value.flip(3))


def test_resizing_to_the_same_grid_is_the_same_tensor():
    value = tensor(1, 3, 5, 7)
    assert resize(value, (5, 7)) is value
