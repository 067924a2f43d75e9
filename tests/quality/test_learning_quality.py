"""On Toybox, with ground truth: a subject that the model never saw is learned from four pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import learn, toybox_runner


@pytest.fixture(scope="module")
def table(host, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("learn")
    patch.setattr(learn, "FILE", folder / "learn.json")
    patch.setattr(learn, "ablations", lambda runner: {})
    patch.setitem(toybox_runner.SAMPLINGS, "unet", replace(toybox_runner.SAMPLINGS["unet"], steps=20))
    patch.setattr(learn, "methods", lambda runner: {
        "DreamBooth LoRA": lambda case, prior: runner.dreambooth(case, prior, "LoRA", 1e-3, 400)})
    runner = learn.MethodRunner(host)
    learn.run(runner, 1, 2, 0, folder)
    merged_table = learn.merged(folder, learn.names_of(runner))
    patch.undo()
    return merged_table


def test_what_was_learned_is_nearer_to_the_subject_than_the_plain_model(table):
    assert table["DreamBooth LoRA"]["subject_error"] < 0.75 * table["plain"]["subject_error"], table


def test_the_scene_of_the_prompt_is_still_followed(table):
    assert table["DreamBooth LoRA"]["scene"] >= 0.5 and table["DreamBooth LoRA"]["class"] == 1, table


def test_the_class_does_not_become_the_subject(table):
    assert table["DreamBooth LoRA"]["drift"] > 0.6 * table["plain"]["drift"], table
