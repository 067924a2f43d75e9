"""On Toybox, with ground truth: a subject that the model never saw is learned from four pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import learn, method_runner, toybox_runner

LORA = "DreamBooth LoRA"


@pytest.fixture(scope="module")
def table(host):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(toybox_runner.SAMPLINGS, "unet", replace(toybox_runner.SAMPLINGS["unet"], steps=20))
        runner = learn.MethodRunner(host)
    (case,), toybox = learn.subject_cases(1, 2), runner.runner
    drawing = learn.Drawing(runner, case)
    with torch.inference_mode():
        drawing.figures(learn.PLAIN, drawing.plain,
                        drift=drawing.drift(toybox.model, lambda text: toybox.prompt(text)[0]))
        taught = runner.dreambooth(case, runner.prior(drawing.kind), "LoRA", 2e-3, 160)
        drawing.figures(LORA, partial(drawing.alone, taught), drift=drawing.drift(taught.model, taught.encode))
    return {row["name"]: row for row in drawing.rows}


def test_what_was_learned_is_nearer_to_the_subject_than_the_plain_model(table):
    assert table[LORA]["subject_error"] < 0.75 * table[learn.PLAIN]["subject_error"], table


def test_the_scene_of_the_prompt_is_still_followed(table):
    assert table[LORA]["scene"] >= 0.5 and table[LORA]["class"] == 1, table


def test_the_class_does_not_become_the_subject(table):
    assert table[LORA]["drift"] > 0.6 * table[learn.PLAIN]["drift"], table


def test_the_command_has_a_row_for_what_was_learned_alone_matched_and_guided(host, monkeypatch, tmp_path):
    """With few steps: what its figures are is not the matter here."""
    monkeypatch.setattr(learn, "FILE", tmp_path / "learn.json")
    monkeypatch.setattr(learn, "ablations", lambda runner: {})
    monkeypatch.setattr(learn, "methods", lambda runner: {
        LORA: lambda case, prior: runner.dreambooth(case, prior, "LoRA", 1e-3, 2)})
    monkeypatch.setattr(method_runner, "CLASS_PICTURES", 2)
    monkeypatch.setitem(toybox_runner.SAMPLINGS, "unet", replace(toybox_runner.SAMPLINGS["unet"], steps=3))
    runner = learn.MethodRunner(host)
    learn.run(runner, 1, 1, 0, tmp_path / "made")
    table = learn.merged(tmp_path / "made", learn.names_of(runner))
    assert set(table) == {learn.PLAIN, LORA, LORA + learn.MATCHED, LORA + learn.GUIDED}
    assert all(row["subject_error"] > 0 for row in table.values())
    assert (tmp_path / "learn.json").is_file() and (tmp_path / "learn.png").is_file()
