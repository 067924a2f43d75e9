"""On Toybox, with ground truth: the matched picture is nearer to the reference's subject than the plain one."""

from __future__ import annotations

import pytest
import torch

from benchmarks import quality
from benchmarks import studio as studios
from benchmarks.arms import MATCHED, PLAIN


@pytest.fixture(scope="module")
def table(host):
    patch = pytest.MonkeyPatch()
    patch.setattr(studios, "STEPS", 20)
    studio, judge, rows = quality.Studio(host), quality.load_judge(), []
    with torch.inference_mode():
        for case in quality.cases(10):
            ready = studio.prepare(case)
            rows.append(quality.draw(studio, judge, case, ready, {PLAIN: studio.model, MATCHED: studio.matched(ready)})[1])
    patch.undo()
    return quality.summarise(rows)


def test_the_subject_is_nearer_to_the_reference(table):
    assert table[MATCHED]["subject_error"] < 0.85 * table[PLAIN]["subject_error"], table


def test_the_layout_stays_the_plain_models(table):
    assert table[MATCHED]["structure_iou"] > 0.4, table


def test_the_silhouette_and_the_background_stay_the_plain_models(table):
    assert table[MATCHED]["silhouette_iou"] > 0.7 and table[MATCHED]["background"] < 4, table


def test_recolouring_bounds_what_a_match_can_reach(table):
    assert table[quality.RECOLOURED]["subject_error"] < table[MATCHED]["subject_error"], table


def test_the_prompts_scene_is_kept(table):
    assert table[MATCHED]["scene_accuracy"] >= table[PLAIN]["scene_accuracy"] - 0.2, table
