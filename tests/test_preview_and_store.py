"""Pictures of a match, and the store of features."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import RUN, close

from dreammatcher.matching.features import FeatureKey, FeatureOptions, FeatureStore, RowFeatures
from dreammatcher.matching.inspection import cells, chosen
from dreammatcher.matching.preview import panels, sheet, spread, warped, wheel
from dreammatcher.matching.settings import ApplySettings, MaskSettings, Snapshot, Trace


def snapshot(height=6, width=9, reference=(6, 9), batch=1, flow=None) -> Snapshot:
    return Snapshot(1.0, torch.ones(batch, 1, height, width), torch.rand(1, 1, 4, 4), torch.ones(batch, 1, height, width),
                    torch.zeros(batch, 2, height, width) if flow is None else flow,
                    torch.linspace(0, 1, batch * height * width).view(batch, 1, height, width), reference)


SITES = tuple(("output", number, 0) for number in (3, 4))


def row(fill: float, sites: tuple = SITES[:1]) -> RowFeatures:
    return RowFeatures((torch.full((1, 2, 4, 4), fill),), {site: torch.full((1, 16, 8), fill) for site in sites}, None)


def key(sigma: float, sites: tuple = SITES[:1], kind: str = "cond") -> FeatureKey:
    return FeatureKey("network", kind, sigma, None, frozenset(sites))


def found(store: FeatureStore, wanted: FeatureKey) -> RowFeatures | None:
    return store.get(wanted, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("size, reference", [((48, 72), (48, 72)), ((50, 31), (64, 20)), ((16, 160), (33, 33))])
def test_every_panel_has_the_size_of_the_result(size, reference):
    shown = panels(snapshot(), torch.rand(3, *size), [torch.rand(3, *reference)], index=3)
    assert len(shown) == 6
    for panel in shown:
        assert panel.shape == (3, *size) and panel.min() >= 0 and panel.max() <= 1


@pytest.mark.parametrize("size", [(48, 72), (50, 31), (16, 160), (700, 500)])
def test_the_sheet_shows_six_named_panels_in_two_rows_at_a_readable_size(size):
    panel = torch.rand(3, *size)
    page = sheet([panel] * 6)
    wide, high = round(size[1] * 320 / max(size)), round(size[0] * 320 / max(size))
    assert page.width >= 3 * wide and page.height >= 2 * (high + 34) and page.width / page.height < 12
    assert len(set(page.crop((0, 8, 200, 34)).getdata())) > 5, "a caption stands over the first panel"


def decoded(step: dict, name: str, kind: str) -> np.ndarray:
    width, height = step["size"]
    return np.frombuffer(base64.b64decode(step[name]), kind).reshape(height, width)


def test_few_steps_of_a_large_picture_are_kept_and_all_of_a_small_one():
    assert chosen(50, 4096) == list(range(50)) and chosen(1, 4096) == [0]
    kept = chosen(50, 4 * 256 * 256)
    assert len(kept) == 7 and kept[0] == 0 and kept[-1] == 49 and kept == sorted(set(kept))
    assert chosen(50, 10**9) == [0, 49]


def test_the_inspector_reads_where_each_position_comes_from():
    flow = torch.zeros(2, 2, 6, 9)
    flow[1, 0] = 8 - 2 * torch.arange(9.0)
    best = torch.zeros(2, 1, 6, 9, dtype=torch.long)
    best[..., 5:] = 1
    pair = replace(snapshot(batch=2, flow=flow), others=((torch.full((2, 2, 6, 9), -2.0), (4, 300)),), best=best)
    step = json.loads(json.dumps(cells(pair, 1)))
    assert step["size"] == [9, 6] and step["references"] == [[9, 6], [300, 4]] and step["sigma"] == 1.0
    source, which = decoded(step, "source", "<u4"), decoded(step, "which", "u1")
    assert np.array_equal(which, best[1, 0].numpy())
    assert source[2].tolist() == [2 * 9 + 8, 2 * 9 + 7, 2 * 9 + 6, 2 * 9 + 5, 2 * 9 + 4, 3, 4, 5, 6]
    assert source[5, 8] == 3 * 300 + 6 and source[0, 8] == 6, "inside the reference, whatever the flow"
    similarity = decoded(step, "similarity", "u1") / 255
    assert np.allclose(similarity, pair.similarity[1, 0].numpy(), atol=0.002)
    assert decoded(step, "foreground", "u1").min() == 255 and decoded(step, "confident", "u1").min() == 1


def test_zero_flow_with_full_trust_shows_the_reference_itself():
    reference = torch.rand(3, 48, 72)
    assert close(warped(snapshot(), [reference], (48, 72), 0), reference)


def test_a_flipping_flow_shows_each_cell_from_the_other_side():
    reference = torch.rand(3, 6, 9)
    flow = torch.zeros(1, 2, 6, 9)
    flow[:, 0] = 8 - 2 * torch.arange(9.0)
    assert close(warped(snapshot(flow=flow), [reference], (6, 9), 0), reference.flip(2))


def test_each_position_shows_the_reference_it_is_matched_with():
    best = torch.zeros(1, 1, 6, 9, dtype=torch.long)
    best[..., 5:] = 1
    pair = replace(snapshot(), others=((torch.zeros(1, 2, 6, 9), (6, 9)),), best=best)
    first, second = torch.rand(3, 6, 9), torch.rand(3, 6, 9)
    shown = warped(pair, [first, second], (6, 9), 0)
    assert close(shown, torch.cat((first[..., :5], second[..., 5:]), 2))
    assert torch.equal(warped(pair, [first], (6, 9), 0)[..., 5:], torch.full((3, 6, 4), 0.5)), "one not given is grey"


def test_no_flow_is_white_on_the_wheel_and_opposite_flows_have_opposite_colours():
    flow = torch.zeros(1, 2, 1, 3)
    flow[0, 0] = torch.tensor([0.0, 5.0, -5.0])
    colours = wheel(flow)[0, :, 0]
    assert torch.equal(colours[:, 0], torch.ones(3))
    for column, expected in ((1, (1.0, 0.0, 0.0)), (2, (0.0, 1.0, 1.0))):
        assert close(colours[:, column], torch.tensor(expected))


def test_points_are_spread_and_only_where_there_is_trust():
    trust = torch.zeros(16, 16)
    trust[:, :4] = 1
    chosen = spread(trust, 12)
    assert 4 <= len(chosen) <= 12 and all(x < 4 for _, x in chosen)
    assert spread(torch.zeros(8, 8), 12) == []


def test_a_full_store_forgets_what_no_run_has_used_for_longest():
    store = FeatureStore(capacity=2 * row(0).bytes())
    for number in range(3):
        store.start_run()
        store.put(key(number), row(number))
    assert found(store, key(0)) is None
    assert found(store, key(2)).scales[0].max() == 2
    store.put(key(2), row(5))
    assert store.bytes() == 2 * row(0).bytes() == sum(kept.bytes() for _, kept in store.rows.values())


def test_using_an_entry_keeps_it_from_being_forgotten():
    store = FeatureStore(capacity=2 * row(0).bytes())
    store.put(key(0), row(0))
    store.put(key(1), row(1))
    store.start_run()
    found(store, key(0))
    store.put(key(2), row(2))
    assert found(store, key(1)) is None


def test_runs_that_need_more_than_there_is_room_for_find_the_first_part_again():
    store = FeatureStore(capacity=3 * row(0).bytes())
    hits = []
    for _ in range(3):
        store.start_run()
        hits.append(0)
        for sigma in range(10):
            if found(store, key(sigma)) is None:
                store.put(key(sigma), row(sigma))
            else:
                hits[-1] += 1
    assert hits == [0, 3, 3] and store.bytes() <= store.capacity


def test_features_are_found_for_the_sites_they_hold_and_for_fewer():
    store = FeatureStore()
    store.put(key(1.0, SITES), row(2.0, SITES))
    assert found(store, key(1.0, SITES)).hidden.keys() == set(SITES)
    fewer = found(store, key(1.0, SITES[:1]))
    assert fewer.hidden.keys() == {SITES[0]} and fewer.scales[0].max() == 2
    other = FeatureStore()
    other.put(key(1.0, SITES[:1]), row(3.0))
    assert found(other, key(1.0, SITES)) is None and found(other, key(1.0, SITES[1:])) is None
    assert found(store, key(2.0, SITES)) is None and found(store, key(1.0, SITES, "uncond")) is None
    other.put(key(1.0, SITES[1:]), row(4.0, SITES[1:]))
    assert [float(found(other, key(1.0, (site,))).scales[0].max()) for site in SITES] == [3.0, 4.0]


def test_features_made_ahead_stand_in_for_the_nearest_noise_levels():
    store = FeatureStore(sigmas=(1.0, 4.0))
    assert store.snap(1.9) == 1.0 and store.snap(2.1) == 4.0 and store.snap(0.0) == 1.0
    assert FeatureStore().snap(1.9) == 1.9


@pytest.mark.parametrize("wanted, expected", [
    (None, (1, 2, 3, 4, 5)), (3, (1, 3, 5)), (2, (1, 5)), (1, (3,)), (9, (1, 2, 3, 4, 5))])
def test_fewer_noise_levels_lie_evenly(wanted, expected):
    assert FeatureOptions(noise_levels=wanted).chosen((1, 2, 3, 4, 5)) == expected


def test_descriptors_stored_at_low_rank_take_less_room_and_come_back_nearly_as_they_were():
    generator = torch.Generator().manual_seed(0)
    codes, directions = torch.randn(64, 3, generator=generator), torch.randn(3, 48, generator=generator)
    scale = (codes @ directions + 2.0).T.reshape(1, 48, 8, 8)
    features = RowFeatures((scale,), {}, None)
    whole, small, useless = FeatureStore(), FeatureStore(FeatureOptions(pca=3)), FeatureStore(FeatureOptions(pca=48))
    for store in (whole, small, useless):
        store.put(key(0), features)
    back = [found(store, key(0)).scales[0] for store in (whole, small, useless)]
    assert torch.equal(back[0], scale) and torch.equal(back[2], scale)
    assert close(back[1], scale, RUN)
    assert small.bytes() == 4 * (48 + 48 * 3 + 64 * 3) < whole.bytes() == useless.bytes()


def test_storage_precision_halves_the_bytes():
    full, half = FeatureStore(), FeatureStore(FeatureOptions(dtype=torch.float16))
    for store in (full, half):
        store.put(key(0), row(1.0))
    assert half.bytes() * 2 == full.bytes()
    assert found(half, key(0)).scales[0].dtype == torch.float32


@pytest.mark.parametrize("thing", [FeatureStore(), Trace(), MaskSettings(target_mask=torch.ones(1, 1, 2, 2))])
def test_the_hosts_deep_copies_are_the_same_object(thing):
    assert copy.deepcopy({"patches": [thing]})["patches"][0] is thing


@pytest.mark.parametrize("make, words", [
    (lambda: FeatureOptions(pca=0), "pca: 0"),
    (lambda: FeatureOptions(device="tpu"), "'tpu' is neither"),
    (lambda: ApplySettings(strength=1.5), "strength: 1.5"),
    (lambda: ApplySettings(start=-0.1), "start and end: -0.1"),
    (lambda: ApplySettings(start=0.5, end=0.5), "not before end"),
    (lambda: MaskSettings(), "nothing says where the subject is"),
    (lambda: MaskSettings(target_mask=torch.zeros(1, 1, 4, 4)), "target MASK: it is empty"),
    (lambda: MaskSettings(target_mask=torch.ones(1, 1, 4, 4), threshold=0), "cycle_threshold: 0"),
])
def test_settings_out_of_range_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
