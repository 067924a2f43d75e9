"""On Toybox, with ground truth: the matched picture is nearer to the reference's subject than the plain one."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from PIL import Image

from benchmarks import quality, toybox_runner
from benchmarks.arms import MATCHED, PLAIN
from toybox.evaluation import BACKGROUND, ERROR, HALO, PARTS, SCENE, SILHOUETTE
from toybox.faults import OTHER, REFERENCE, THIRD
from toybox.faults import PLAIN as PLAIN_COLOUR


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quality")


@pytest.fixture(scope="module")
def arms(host, folder):
    patch = pytest.MonkeyPatch()
    patch.setitem(toybox_runner.SAMPLINGS, "unet", replace(toybox_runner.SAMPLINGS["unet"], steps=20))
    patch.setitem(quality.STUDIES["unet"], "two", lambda runner, ready: {PLAIN: runner.model, MATCHED: runner.matched(ready)})
    yield quality.run(quality.ToyboxRunner(host), "two", 10, 0, folder)
    patch.undo()


@pytest.fixture(scope="module")
def table(arms):
    """Means of each arm."""
    return {arm.name: {metric: arm.estimate(metric).mean for metric in arm.metrics()} for arm in arms}


def test_the_subject_is_nearer_to_the_reference(table):
    assert table[MATCHED][ERROR] < 0.85 * table[PLAIN][ERROR], table


def test_the_layout_stays_the_plain_models(table):
    assert table[MATCHED][PARTS] > 0.4, table


def test_the_silhouette_and_the_background_stay_the_plain_models(table):
    assert table[MATCHED][SILHOUETTE] > 0.7 and table[MATCHED][BACKGROUND] < 4, table


def test_recolouring_bounds_what_a_match_can_reach(table):
    assert table[quality.RECOLOURED][ERROR] < table[MATCHED][ERROR], table


def test_the_prompts_scene_is_kept(table):
    assert table[MATCHED][SCENE] >= table[PLAIN][SCENE] - 0.2, table


def test_more_parts_take_the_references_colour_and_the_faults_of_both_arms_are_measured(table):
    assert table[MATCHED][REFERENCE] > table[PLAIN].get(REFERENCE, 0.0) + 0.2, table
    assert table[PLAIN][PLAIN_COLOUR] == 1.0 and table[PLAIN][HALO] == 0.0, table
    assert sum(table[MATCHED][fate] for fate in (REFERENCE, PLAIN_COLOUR, OTHER, THIRD)) == pytest.approx(1.0)


def test_the_worst_the_median_and_the_best_picture_are_set_beside_the_mean(arms, folder):
    arm = next(arm for arm in arms if arm.name == MATCHED)
    every, spread = sorted(arm.column(ERROR).values()), quality.spread(arm, arms[0])
    assert f"subject error {statistics.median(every):.1f}, " in spread
    assert f"{sum(each <= 10 for each in every)} of {len(every)} have 10 or less" in spread
    assert "worse than plain by nothing" in quality.spread(arms[0], arms[0])
    told = quality.extremes(arm, arms[0], folder, 3).partition(": ")[2].split(", ")
    errors = [float(one.split()[1]) for one in told]
    assert len(told) == 7 and errors == sorted(errors, reverse=True)
    assert errors[0] == round(every[-1], 1) and errors[-1] == round(every[0], 1)
    with Image.open(folder / "report" / f"extremes of {MATCHED}.png") as sheet:
        assert sheet.size == (3 * 128, 7 * 128)


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_table(host, folder, arms):
    def times():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}

    before = times()
    gone = [path for path in before if path.parent.name == "cases" and path.stem.startswith("bird")]
    for path in gone:
        path.unlink()
    again = quality.run(quality.ToyboxRunner(host), "two", 10, 0, folder)
    assert gone and {path for path, when in times().items() if before[path] != when} == set(gone)
    assert [arm.name for arm in again] == [arm.name for arm in arms]
    without_time = [[{name: value for name, value in row.items() if name != quality.TIME} for row in arm.scores.values()]
                    for arms_of_one in (arms, again) for arm in arms_of_one]
    assert without_time[:3] == without_time[3:]
