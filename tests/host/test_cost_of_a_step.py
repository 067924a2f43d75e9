"""The cost that matching adds to a step besides arithmetic: operations to dispatch, and waits for the device.

Counted, not timed: every operation costs the time of its call, and on a GPU everything that is read back, or made of values
in Python, makes the host wait. What is moved from main memory cannot be seen here.
"""

from __future__ import annotations

from collections import Counter

import pytest
from torch.profiler import ProfilerActivity, profile
from world import Bench, family_unet

#: what reads from the device, has a size that depends on data, or copies Python values over
WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select", "aten::equal",
         "aten::lift_fresh", "aten::index")


@pytest.fixture(scope="module")
def bench(pack) -> Bench:
    return Bench(pack, family_unet("SD1.5"), height=32, width=32)


@pytest.fixture(scope="module")
def guided(bench, pack):
    """Makes a matched model that is led in mode fast."""
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings
    guide = pack.module("dreammatcher.host.matching.guide").guide
    return lambda: guide(bench.apply()[0], settings(1.0, 0.0, 1.0, "fast"))


def operations(bench, model) -> Counter:
    """Calls of every operation in one step, with the reference's features at hand."""
    def counted(steps: int) -> Counter:
        run = dict(height=32, width=32, sampler="euler", steps=steps)
        bench.sample(model, **run)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            bench.sample(model, **run)
        return Counter({event.key: event.count for event in recorded.key_averages() if event.key.startswith("aten::")})

    longer, shorter = counted(6), counted(4)
    return Counter({name: (longer[name] - shorter[name]) // 2 for name in longer})


@pytest.fixture(scope="module")
def plain(bench) -> Counter:
    return operations(bench, bench.model)


def waits(counts: Counter, plain: Counter) -> dict[str, int]:
    return {name: counts[name] - plain[name] for name in WAITS if counts[name] != plain[name]}


def test_a_matched_step_waits_for_the_device_only_to_read_its_noise_level(bench, plain):
    assert waits(operations(bench, bench.apply()[0]), plain) == {"aten::_local_scalar_dense": 1}


def test_fast_guidance_waits_for_nothing_more(bench, plain, guided):
    assert waits(operations(bench, guided()), plain) == {"aten::_local_scalar_dense": 1}


def test_a_matched_step_takes_at_most_a_quarter_more_operations_than_a_plain_one(bench, plain, guided):
    matched, led = operations(bench, bench.apply()[0]), operations(bench, guided())
    assert matched.total() < 1.25 * plain.total()
    assert led.total() < 1.02 * matched.total()


def test_the_best_settings_wait_no_more_and_take_at_most_a_third_more_operations_than_a_plain_step(pack, bench, plain):
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings
    best, _ = bench.apply(mask=bench.mask(carried=True), match=pack.module("dreammatcher.matching.settings").PRESETS["best"])
    led = pack.module("dreammatcher.host.matching.guide").guide(best, settings(1.0, 0.0, 1.0, "inside"))
    counts = operations(bench, led)
    assert waits(counts, plain) == {"aten::_local_scalar_dense": 1}
    assert counts.total() < 1.34 * plain.total()


def test_two_subjects_cost_twice_as_much(bench, plain):
    both, _ = bench.apply(bench.apply()[0], mask=bench.mask(target_subject=bench.subjects[0]))
    counts = operations(bench, both)
    assert waits(counts, plain) == {"aten::_local_scalar_dense": 2}
    assert counts.total() < 1.5 * plain.total()
