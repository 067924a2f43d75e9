"""What matching adds to a step besides arithmetic: operations to launch, and waits for the device.

Counted, not timed: on a GPU every operation costs its launch, and everything that is read back, or copied over from
values in Python, makes the host wait for the device.
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
    """A matched model led in one mode."""
    settings, guide = pack.module("dreammatcher.guidance").GuidanceSettings, pack.module("dreammatcher.host.guide").guide
    return lambda mode: guide(bench.apply()[0], settings(1.0, 0.0, 1.0, mode))


def operations(bench, model) -> Counter:
    """Calls of every operation in one step, with the reference's features at hand."""
    def counted(steps: int) -> Counter:
        run = dict(height=32, width=32, sampler="euler", steps=steps)
        bench.sample(model, **run)
        with profile(activities=[ProfilerActivity.CPU]) as made:
            bench.sample(model, **run)
        return Counter({event.key: event.count for event in made.key_averages() if event.key.startswith("aten::")})

    longer, shorter = counted(6), counted(4)
    return Counter({name: (longer[name] - shorter[name]) // 2 for name in longer})


@pytest.fixture(scope="module")
def plain(bench) -> Counter:
    return operations(bench, bench.model)


def waits(found: Counter, plain: Counter) -> dict[str, int]:
    return {name: found[name] - plain[name] for name in WAITS if found[name] != plain[name]}


def test_a_matched_step_waits_for_the_device_only_to_read_its_noise_level(bench, plain):
    assert waits(operations(bench, bench.apply()[0]), plain) == {"aten::_local_scalar_dense": 1}


def test_fast_guidance_waits_for_nothing_more(bench, plain, guided):
    assert waits(operations(bench, guided("fast")), plain) == {"aten::_local_scalar_dense": 1}


def test_a_matched_step_launches_at_most_a_third_more_operations_than_a_plain_one(bench, plain, guided):
    matched, led = operations(bench, bench.apply()[0]), operations(bench, guided("fast"))
    assert matched.total() < 1.33 * plain.total()
    assert led.total() < 1.02 * matched.total()


def test_two_subjects_read_the_noise_level_once_each(bench, plain):
    both, _ = bench.apply(bench.apply()[0], mask=bench.mask(target_subject=bench.subjects[0]))
    assert waits(operations(bench, both), plain) == {"aten::_local_scalar_dense": 2}
