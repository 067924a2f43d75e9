"""On Toybox, with ground truth: the matched picture is nearer to the reference's subject than the plain one."""

from __future__ import annotations

import pytest
import torch

from benchmarks import quality
from benchmarks import studio as studios


@pytest.fixture(scope="module")
def table(host):
    patch = pytest.MonkeyPatch()
    patch.setattr(studios, "STEPS", 20)
    studio, judge, rows = quality.Studio(host), quality.load_judge(), []
    with torch.inference_mode():
        for case in quality.cases(10):
            ready = studio.prepare(case)
            models = {quality.PLAIN: studio.model, quality.MATCHED: studio.matched(ready)}
            pictures = {name: studio.sample(model, ready.target, ready.negative, case.seed) for name, model in models.items()}
            seen = {name: quality.look(judge, picture) for name, picture in pictures.items()}
            rows.append({name: quality.measure(case, ready, pictures[name], seen[name], seen[quality.PLAIN])
                         for name in pictures})
    patch.undo()
    return quality.summarise(rows)


def test_the_subject_is_nearer_to_the_reference(table):
    assert table[quality.MATCHED]["subject_error"] < 0.85 * table[quality.PLAIN]["subject_error"], table


def test_the_layout_stays_the_plain_models(table):
    assert table[quality.MATCHED]["structure_iou"] > 0.4, table


def test_the_prompts_scene_is_kept(table):
    assert table[quality.MATCHED]["scene_accuracy"] >= table[quality.PLAIN]["scene_accuracy"] - 0.2, table
