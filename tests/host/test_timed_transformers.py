"""The transformers that ``make bench`` times, small: every arm runs and does what it is named after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.bench import measure
from benchmarks.timing_transformer import CACHED, FIRST, LOCKED, TRANSFORMERS, TimingTransformer, known


@pytest.mark.parametrize("name", list(TRANSFORMERS))
def test_every_arm_of_a_case_is_timed(host, name):
    if not known():
        pytest.skip("this host does not let us into transformers")
    case = replace(TRANSFORMERS[name], width=256, blocks=12, side=8)
    with torch.inference_mode():
        timing = TimingTransformer(host, case, 2, torch.float32, torch.device("cpu"))
        arms = measure(timing, 1)
        backbone = timing.module("dreammatcher.host.model.backbone").backbone_of(timing.model.model)
        assert list(arms) == list(case.arms) and all(each["ratio"] > 0 for each in arms.values())
        assert backbone.blocks == 12 and len(backbone.chosen("")) == 3
        if CACHED in case.arms:
            made = [row for key, (_, row) in timing.kept.rows.items() if key[1] == "cond"]
            assert len(made) == 2 and all({site[1] for site in row.hidden} == {9, 10, 11} for row in made)
        if LOCKED in case.arms:
            plan = timing.locked().model_options["transformer_options"]["dreammatcher_locked"][0].plan
            assert plan.settings.strength == 1


def test_as_many_blocks_are_timed_as_half_of_the_memory_holds():
    """A block of Z-Image has half a gigabyte in 16 bit."""
    case = TRANSFORMERS["Z-Image 1024x1024"]
    assert [case.fitting(gigabytes * 10 ** 9, torch.bfloat16).blocks for gigabytes in (1, 15, 26, 100)] == [12, 12, 24, 30]
    assert replace(case, blocks=3).fitting(0, torch.bfloat16).blocks == 3 and FIRST in case.arms
