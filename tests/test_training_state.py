"""The safety state of a training: written by time, one tensor after the other, and never in the way of the training."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from small_training import outcome, recipe, stopped

from dreammatcher.training import loop, state
from dreammatcher.training.loop import Training, train
from dreammatcher.training.settings import Running, TrainingSettings
from dreammatcher.training.state import Checkpoint

pytestmark = pytest.mark.usefixtures("gradients")


FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
           torch.uint8, torch.bool)


def test_every_format_and_shape_is_read_as_it_was_written_by_safetensors_too(tmp_path):
    path = tmp_path / "state.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{dtype}": (4 * torch.randn(3, 5, generator=generator)).to(dtype) for dtype in FORMATS}
    tensors |= {"number": torch.tensor(2.5), "empty": torch.empty(0, 4), "turned": torch.arange(12.0).view(3, 4).T,
                "part": torch.arange(10.0)[2:5]}
    state.write(path, {"tensors": tensors, "word": "ä\u2028", "none": None}, "job", "kin", stuck=True)
    kept = state.read(path, "job")
    assert kept["word"] == "ä\u2028" and kept["none"] is None and state.about(path) == state.Kept("job", "kin", True)
    assert all(torch.equal(value, kept["tensors"][name]) and value.dtype == kept["tensors"][name].dtype
               for name, value in tensors.items())
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("state.tensors.turned"), tensors["turned"])


def test_a_state_of_an_earlier_version_is_read(tmp_path):
    """An earlier state had no kin, and safetensors itself wrote it."""
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    tree = {"dict": [["step", 3], ["weight", {"tensor": "state.weight"}]]}
    save_file({"state.weight": torch.ones(2)}, path, {"format": state.FORMAT, "job": "job", "tree": json.dumps(tree)})
    assert state.read(path, "job")["step"] == 3 and state.about(path) == state.Kept("job", "", False)


def test_writing_takes_the_memory_of_one_tensor_and_not_of_all(tmp_path):
    """Memory that torch holds is not seen here; the copies that the format needs would be bytes and arrays."""
    tensors = {str(number): torch.full((1 << 18,), float(number)) for number in range(16)}  # 1 MB each
    seen, real = [], torch.Tensor.contiguous
    tracemalloc.start()
    try:
        torch.Tensor.contiguous = lambda one, **given: seen.append(one.nbytes) or real(one, **given)
        state.write(tmp_path / "state.safetensors", tensors, "job")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        torch.Tensor.contiguous = real
        tracemalloc.stop()
    assert peak < 1 << 20 and max(seen) == 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_state_that_was_read_lies_in_its_file_no_more(tmp_path):
    """Windows refuses to replace a file that is mapped."""
    path = tmp_path / "state.safetensors"
    state.write(path, {"weight": torch.ones(1 << 16)}, "job")
    kept = state.read(path, "job")
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(path) not in maps and not any(str(path) == os.path.realpath(f"/proc/self/fd/{number}")
                                             for number in os.listdir("/proc/self/fd"))
    assert kept["weight"].sum() == 1 << 16


def written(monkeypatch, tmp_path, minutes: float, each: float, steps: int = 12) -> list[int]:
    """Steps after which a state is written when each step takes ``each`` seconds."""
    clock, seen = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loop.states, "write", lambda path, kept, *_: seen.append(kept["step"]))

    def after(training: Training) -> None:
        clock[0] += each

    train(recipe(), TrainingSettings(steps=steps), Checkpoint(tmp_path / "state.safetensors", "job", minutes), after)
    return seen


@pytest.mark.parametrize(("minutes", "each", "expected"), [
    (10, 30, []), (1, 20, [4, 7, 10]), (1, 60, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]), (0, 60, []), (1, 1e-3, [])])
def test_states_are_written_by_time_and_none_after_the_last_step(monkeypatch, tmp_path, minutes, each, expected):
    assert written(monkeypatch, tmp_path, minutes, each) == expected


@pytest.mark.parametrize("minutes", [0.0, 10.0])
def test_a_run_that_is_stopped_is_kept_whatever_the_interval(tmp_path, minutes):
    path = tmp_path / "state.safetensors"
    stopped(path, at=3, steps=9, minutes=minutes)
    assert state.read(path, "one")["step"] == 3 and [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_state_that_cannot_be_written_is_told_with_its_size_and_the_training_goes_on(tmp_path):
    (tmp_path / "file").write_text("in the place of a folder")
    path, told = tmp_path / "file" / "state.safetensors", []
    whole, hindered = recipe(text=True), recipe(text=True)
    train(whole, TrainingSettings(steps=5))
    run = train(hindered, TrainingSettings(steps=5), Checkpoint(path, "job", minutes=1e-9), warn=told.append)
    assert run.step == 5 and all(torch.equal(value, outcome(hindered)[name]) for name, value in outcome(whole).items())
    assert len(told) == 4 and f"cannot be written to {path}" in told[0] and "5.5 kB at step 1" in told[0], told[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
def test_a_full_disk_leaves_the_last_state_and_no_rest_of_the_next_one(tmp_path, monkeypatch):
    path, told, real = tmp_path / "state.safetensors", [], type(tmp_path).open
    stopped(path, at=2, steps=6)
    monkeypatch.setattr(type(tmp_path), "open", lambda path, mode="r", *rest, **more: real(
        Path("/dev/full") if path.suffix == ".part" else path, mode, *rest, **more))
    run = train(recipe(), TrainingSettings(steps=6), Checkpoint(path, "one", minutes=1e-9), warn=told.append)
    assert run.step == 6 and len(told) == 3 and "No space left" in told[0]
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"] and state.read(path, "one")["step"] == 2


def test_an_interrupt_is_still_an_interrupt_when_the_state_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the place of a folder")

    def interrupt(training: Training) -> None:
        raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), TrainingSettings(steps=5), Checkpoint(tmp_path / "file" / "state.safetensors", "job"), interrupt,
              warn=told.append)
    assert len(told) == 1


def test_the_interval_is_named_when_it_makes_no_sense():
    with pytest.raises(ValueError, match="keep_minutes: -1 is outside"):
        Running(keep_minutes=-1)


def test_a_state_is_refused_when_it_is_damaged_or_of_another_job(tmp_path):
    path = tmp_path / "state.safetensors"
    stopped(path, at=1)
    with pytest.raises(ValueError, match="other pictures or settings"):
        train(recipe(), TrainingSettings(steps=2), Checkpoint(path, "two"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        train(recipe(), TrainingSettings(steps=2), Checkpoint(path, "one"))


TREES = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
                     lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner),
                                             st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), inner, max_size=3)),
                     max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_any_state_is_read_as_it_was_written(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("states") / "state.safetensors"
    state.write(path, {"tree": tree, "tensor": torch.arange(3)}, "job")
    kept = state.read(path, "job")
    assert kept["tree"] == tree and torch.equal(kept["tensor"], torch.arange(3))
