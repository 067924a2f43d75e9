"""Faults that a mean hides, on renders: what is painted beside the subject is a halo, and every part has one fate."""

from __future__ import annotations

import random

import numpy as np
import pytest

from toybox.draw import render
from toybox.evaluation import HALO, cases, measured
from toybox.faults import OTHER, PLAIN, REFERENCE, THIRD, fates, halo
from toybox.judge import load_judge, look, part_colours
from toybox.layout import recoloured
from toybox.world import CLASSES, random_pose, random_scene, unseen_subject


def two_of(kind: str, seed: int = 3):
    """Two subjects of a class in one pose and scene: (picture, parts) each."""
    rng = random.Random(seed)
    pose, scene = random_pose(rng), random_scene(rng)
    return (render(unseen_subject(number, kind), pose, scene) for number in (1, 2))


def ring_of(parts: np.ndarray, first: int, last: int) -> np.ndarray:
    rows, columns = np.nonzero(parts)
    y, x = np.mgrid[:parts.shape[0], :parts.shape[1]]
    distance = np.sqrt(((y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2).min(-1))
    return (distance > first) & (distance <= last)


def test_only_what_changes_visibly_around_the_subject_is_a_halo():
    (picture, parts), _ = two_of("robot")
    assert halo(picture, parts, picture, parts) == 0.0
    faint = np.clip(picture.astype(int) + 3, 0, 255).astype(np.uint8)
    assert halo(faint, parts, picture, parts) == 0.0
    ring = ring_of(parts, 2, 14)
    changed = picture.copy()
    changed[ring] = 255 - changed[ring] // 2 - 60
    half = changed.copy()
    half[:, :64] = picture[:, :64]
    whole = halo(changed, parts, picture, parts)
    assert whole > 0.9 and 0.05 < halo(half, parts, picture, parts) < whole
    elsewhere = picture.copy()
    elsewhere[~ring & (parts == 0)] = (255, 0, 255)
    elsewhere[parts > 0] = (255, 0, 255)
    assert halo(elsewhere, parts, picture, parts) == 0.0


def test_without_a_subject_there_is_no_halo_to_measure():
    (picture, parts), _ = two_of("cat")
    assert halo(picture, np.zeros_like(parts), picture, np.zeros_like(parts)) is None


@pytest.mark.parametrize("kind", CLASSES)
def test_every_part_that_should_change_has_one_fate(kind):
    (plain, parts), (reference, reference_parts) = two_of(kind)

    def fate(picture: np.ndarray) -> dict[str, float]:
        return fates(picture, parts, plain, parts, reference, reference_parts, kind)

    assert fate(plain)[PLAIN] == 1.0
    assert fate(recoloured(plain, parts, reference, reference_parts, kind))[REFERENCE] == 1.0
    assert sum(fate(reference).values()) == pytest.approx(1.0)
    strange = plain.copy()
    known = [colour for image, labels in ((plain, parts), (reference, reference_parts))
             for colour, _ in part_colours(image, labels, kind).values()]
    colour = max(np.ndindex(4, 4, 4), key=lambda rgb: min(np.abs(np.array(rgb) * 85 - one).sum() for one in known))
    strange[parts > 0] = np.array(colour) * 85
    assert fate(strange)[THIRD] == 1.0 and set(fate(strange)) == {REFERENCE, PLAIN, OTHER, THIRD}


def test_pictures_of_the_same_colours_have_no_part_to_change():
    (plain, parts), _ = two_of("fish" if "fish" in CLASSES else CLASSES[0])
    assert fates(plain, parts, plain, parts, plain, parts, CLASSES[0]) == {}


def test_a_case_is_measured_with_its_faults_where_there_is_a_plain_picture():
    case, judge = cases(1)[0], load_judge()
    picture = case.reference()[0]
    alone = measured(judge, picture, case.truth())
    beside = measured(judge, picture, case.truth(), (picture, look(judge, picture)))
    assert HALO not in alone and THIRD not in alone
    assert beside[HALO] == 0.0 and THIRD not in beside, "its own colours need no change"


def test_other_seeds_draw_the_same_subjects_and_scenes_with_other_noise():
    first, second = cases(3, 7), cases(3, 7, 1)
    assert [(case.subject, case.pose, case.scene, case.wanted_scene) for case in first] == [
        (case.subject, case.pose, case.scene, case.wanted_scene) for case in second]
    assert not {case.seed for case in first} & {case.seed for case in second}
