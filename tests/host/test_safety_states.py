"""Safety states of trainings in the host: never in the way, one for each run, and gone when nobody goes on with them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from harness.graphs import node

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

USUAL = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
             min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again")
STEPS = 3


@pytest.fixture
def folder(host):
    """The folder of the states, empty."""
    states = host.folder / "output" / "dreammatcher" / "training"
    states.mkdir(parents=True, exist_ok=True)
    for file in states.iterdir():
        file.unlink()
    return states


@pytest.fixture
def told(pack, monkeypatch):
    """The messages that were shown on nodes."""
    said = []
    for module in ("run", "safety"):
        monkeypatch.setattr(pack.module(f"dreammatcher.host.training.{module}"), "tell", said.append)
    return said


@pytest.fixture
def learn(host, fresh):
    draw = host.nodes["ToyboxReference"]().draw
    pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])[:, ::2, ::2]
    training_set = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 64, pictures)["result"][0]

    def learned(steps=STEPS, seed=1, **options) -> dict[str, torch.Tensor]:
        chosen, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL, **options)
        node = host.nodes["DreamMatcherDreamBooth"]()
        return node.learn(*fresh, training_set, "LoRA", steps, 1e-3, seed, options=chosen)[2].lora
    return learned


@pytest.fixture
def stop_at(monkeypatch):
    """Has the user interrupt trainings of so many steps after one of them, as the host's button does."""
    import comfy.model_management
    import comfy.utils

    update = comfy.utils.ProgressBar.update_absolute

    def at(step: int, steps: int = STEPS) -> None:
        def interrupt(bar, value, total=None, *rest):
            if (value, total) == (step, steps):
                comfy.model_management.interrupt_current_processing()
            update(bar, value, total, *rest)
        monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", interrupt)
    return at


def test_a_full_disk_costs_nothing_but_the_safety_net(pack, learn, folder, told, monkeypatch):
    state = pack.module("dreammatcher.training.state")
    expected = learn()

    def full(file, *_):
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(state, "_stream", full)
    learned = learn(keep_minutes=1e-9)
    assert all(torch.equal(value, learned[name]) for name, value in expected.items())
    assert len(told) == STEPS - 1 and "cannot be written to" in told[0] and "No space left" in told[0] and "1.0 MB" in told[0]
    assert not list(folder.iterdir())


def test_a_folder_that_is_in_the_way_costs_nothing_either(learn, folder, told):
    folder.rmdir()
    folder.write_text("a file in its place")
    try:
        assert learn(keep_minutes=1e-9) and len(told) == STEPS - 1
    finally:
        folder.unlink()


@pytest.mark.parametrize(("minutes", "written"), [(10.0, 0), (1e-9, STEPS - 1), (0.0, 0)])
def test_states_are_written_by_time_and_go_with_the_run(pack, learn, folder, monkeypatch, minutes, written):
    states, seen = pack.module("dreammatcher.training.state"), []
    write = states.write

    def noting(path, *given):
        write(path, *given)
        seen.append(sorted(file.name for file in folder.iterdir()))

    monkeypatch.setattr(states, "write", noting)
    learn(keep_minutes=minutes)
    assert len(seen) == written and all(len(names) == 1 for names in seen) and not list(folder.iterdir())


def test_an_interrupt_keeps_a_state_whatever_the_interval_and_the_run_goes_on_from_it(pack, learn, folder, stop_at):
    expected = learn(seed=2)
    stop_at(2)
    with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
        learn(seed=2, keep_minutes=0.0)
    state, = folder.glob("*.safetensors")
    assert pack.module("dreammatcher.training.state").read(
        state, pack.module("dreammatcher.training.state").about(state).job)["step"] == 2
    stop_at(0)
    learned = learn(seed=2, keep_minutes=0.0)
    assert all(torch.equal(value, learned[name]) for name, value in expected.items()) and not list(folder.iterdir())


def test_an_interrupt_after_the_last_step_stops_the_graph_and_not_the_result(pack, learn, folder, stop_at):
    import comfy.model_management

    expected = learn(seed=3)
    stop_at(STEPS)
    learned = learn(seed=3)
    assert all(torch.equal(value, learned[name]) for name, value in expected.items())
    with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):  # the next node does not begin
        comfy.model_management.throw_exception_if_processing_interrupted()


def left_behind(folder: Path, name: str, days: float, size: int = 1000) -> Path:
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)  # takes no room
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_states_that_nobody_goes_on_with_are_removed_with_a_message(pack, learn, folder, told):
    safety = pack.module("dreammatcher.host.training.safety")
    old = left_behind(folder, "a" * 32 + ".safetensors", safety.DAYS + 1)
    recent = left_behind(folder, "b" * 32 + ".safetensors", safety.DAYS - 1)
    rest = left_behind(folder, "c" * 32 + ".safetensors.0123abcd.part", 2)
    writing = left_behind(folder, "d" * 32 + ".safetensors.0123abcd.part", 0.1)
    foreign = left_behind(folder, "my notes.safetensors", 400)
    learn()
    assert not old.exists() and not rest.exists() and recent.exists() and writing.exists() and foreign.exists()
    assert len(told) == 1 and old.name in told[0] and rest.name in told[0] and f"{safety.DAYS} days" in told[0]
    learn()
    assert len(told) == 1


def test_of_many_large_states_the_oldest_go_but_none_of_the_last_day(pack, learn, folder, told):
    room = pack.module("dreammatcher.host.training.safety").ROOM
    states = [left_behind(folder, f"{number:032x}.safetensors", number + 0.5, int(0.45 * room)) for number in range(4)]
    learn()
    assert [path.exists() for path in states] == [True, True, False, False]
    today = [left_behind(folder, f"{number:032x}.safetensors", 0.1 * number, int(0.9 * room)) for number in range(3)]
    learn()
    assert all(path.exists() for path in today) and len(told) == 1


def test_a_state_of_another_rate_that_was_merely_stopped_is_left_alone(pack, host, fresh, learn, folder, told, stop_at):
    stop_at(2)
    with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
        learn(seed=4)
    kept = list(folder.iterdir())
    stop_at(0)
    learn(seed=4, gradient_checkpointing=True)  # the same training: it goes on
    assert not list(folder.iterdir())
    stop_at(2)
    with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
        learn(seed=4)
    stop_at(0)
    learn(seed=5)
    assert list(folder.iterdir()) == kept and not told


def test_a_workflow_that_still_holds_keep_every_runs(host):
    graph = {"1": node("ToyboxLoader"), "o": node("DreamMatcherTrainingOptions", **USUAL, keep_every=100)}
    for pose in (1, 2):
        graph[f"r{pose}"] = node("ToyboxReference", subject=1, kind="robot", pose=pose, background="grass")
    graph["b"] = node("ImageBatch", image1=["r1", 0], image2=["r2", 0])
    graph["2"] = node("DreamMatcherTrainingSet", identifier="sks", class_word="robot", template="photo", resolution=64,
                      images=["b", 0])
    graph["3"] = node("DreamMatcherDreamBooth", model=["1", 0], clip=["1", 1], vae=["1", 2], training_set=["2", 0], kind="LoRA",
                      steps=1, rate=1e-3, seed=0, options=["o", 0])
    graph["4"] = node("PreviewImage", images=["3", 3])
    assert not host.run(graph).error()
