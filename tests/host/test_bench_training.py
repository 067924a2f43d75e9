"""The benchmark of training: every arm takes steps on the same weights, pictures and prompt."""

from __future__ import annotations

import pytest
import torch

from benchmarks.training_arms import ARMS, Setting, step_times


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ARMS)
def test_every_arm_takes_its_steps(host, name, checkpointing):
    if name == "TrainLoraNode" and not host.upstream:
        pytest.skip("packaged hosts have no such node")
    with torch.inference_mode():
        times = step_times(ARMS[name](host, Setting(8, 2, 4, 32, 3, checkpointing)))
    assert len(times) == 2 and all(seconds > 0 for seconds in times)
