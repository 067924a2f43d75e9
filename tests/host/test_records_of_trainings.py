"""The course of a training is written as it goes: a table of every step, once each, and events of TensorBoard if it is there."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys

import pytest
from test_kept_steps import learn, loras, runs, same, stop_at  # noqa: F401  fixtures

pytestmark = [pytest.mark.usefixtures("as_in_a_graph")]
WITH_BOARD = importlib.util.find_spec("tensorboard") is not None


@pytest.fixture(autouse=True)
def no_estimate(pack, monkeypatch, runs):  # noqa: F811
    """Memory, most of so short a training, has tests of its own. No run is on disk."""
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, chosen, *_, **__: chosen)


def table(runs):  # noqa: F811
    with (runs / "sks" / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_step_is_a_row_and_a_run_that_goes_on_goes_on_in_the_same_table(pack, learn, loras, runs, stop_at):  # noqa: F811
    expected = learn(schedule="linear")
    stop_at(3)
    with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
        learn(schedule="linear", records="CSV")
    first = table(runs)
    assert [row["step"] for row in first] == ["1", "2", "3"] and list(first[0]) == [
        "step", "loss", "rate", "gradient_norm", "steps_per_second"]
    with (runs / "sks" / "log.csv").open("a") as file:
        file.write("4,1,1,1,1\n5,0.1")  # of an attempt that went further and was killed within a row
    stop_at(0)
    assert same(learn(schedule="linear", records="CSV", keep_every=5).lora, expected.lora), "it changes nothing"
    rows = table(runs)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"] and rows[:3] == first
    assert [float(row["rate"]) for row in rows] == pytest.approx([1e-3 * (1 - step / 5) for step in range(5)])
    assert all(float(row["gradient_norm"]) > 0 and float(row["steps_per_second"]) > 0 for row in rows)
    losses = json.loads((runs / "sks" / "run.json").read_text())["losses"]
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)
    learn(schedule="linear", records="CSV")
    assert len(table(runs)) == 5, "the same training again replaces its rows"


def test_nothing_is_written_where_that_is_off_and_another_training_has_a_table_of_its_own(learn, runs):  # noqa: F811
    learn(steps=1, records="none")
    assert not runs.exists()
    learn(steps=1, records="CSV")
    learn(steps=2, seed=9, records="CSV")
    assert len(table(runs)) == 1 and (runs / "sks_2" / "log.csv").is_file()


def test_a_table_that_cannot_be_written_costs_nothing_but_the_table(pack, learn, runs, monkeypatch):  # noqa: F811
    said = []
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "tell", said.append)
    (runs / "sks" / "log.csv").mkdir(parents=True)
    assert learn(steps=2, records="CSV").about["steps"] == "2"
    assert len(said) == 1 and "the records of this training cannot be written to" in said[0]


def test_events_without_their_package_are_refused_before_the_first_step(learn, runs, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match="records: TensorBoard's events need the package tensorboard, which is not installed"):
        learn(records="CSV and TensorBoard")
    assert not runs.exists()


@pytest.mark.skipif(not WITH_BOARD, reason="tensorboard is not installed")
def test_events_hold_every_step_once(pack, learn, runs, stop_at):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stop_at(3)
    with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
        learn(records="CSV and TensorBoard")
    stop_at(0)
    learn(records="CSV and TensorBoard")
    events = EventAccumulator(str(runs / "sks" / "tensorboard"))
    events.Reload()
    for name in ("loss", "rate", "gradient_norm"):
        scalars = events.Scalars(name)
        assert [one.step for one in scalars] == [1, 2, 3, 4, 5]
        assert [one.value for one in scalars] == pytest.approx([float(row[name]) for row in table(runs)], rel=1e-4)


def test_a_kind_of_records_that_there_is_none_of_is_refused(host, learn):  # noqa: F811
    with pytest.raises(ValueError, match="records: 'XML' is unknown; choose one of none, CSV, CSV and TensorBoard"):
        learn(records="XML")
