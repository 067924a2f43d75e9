"""The drawn world: seeds name subjects, training and evaluation never share one, the judge's measures are what they say."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from toybox.colour import difference, lab
from toybox.draw import render
from toybox.judge import coherence, colours_followed, load_judge, palette_distance, part_colours, purity, subject_error
from toybox.layout import background_change, edge_overlap, facing_of, recoloured, silhouette_iou, structure_iou
from toybox.making.dataset import picture
from toybox.making.train_judge import accuracy
from toybox.picture import reference_picture
from toybox.shapes import PART_LABELS, PART_ROLES
from toybox.vocab import END, START, merges, vocabulary, words
from toybox.world import (
    CLASSES,
    ROLES,
    SCENES,
    Pose,
    Scene,
    caption,
    face,
    is_held_out,
    random_pose,
    random_scene,
    unseen_subject,
)


def drawn(seed: int, kind: str, subject: int = 1):
    rng = random.Random(seed)
    return render(unseen_subject(subject, kind), random_pose(rng), random_scene(rng))


def test_colours_and_their_difference_are_those_of_scikit_image_and_of_the_paper():
    from skimage.color import deltaE_ciede2000, rgb2lab

    one, other = np.random.default_rng(0).integers(0, 256, (2, 5000, 3))
    one[:50], other[30:80], other[:10] = one[:50, :1], other[30:80, :1], one[:10]  # greys, and the same colour twice
    known = rgb2lab(one / 255), rgb2lab(other / 255)
    assert np.abs(lab(one) - known[0]).max() < 1e-9
    assert np.abs(difference(lab(one), lab(other)) - deltaE_ciede2000(*known)).max() < 1e-9
    # pairs 1, 7, 14, 24 and 34 of the test data of Sharma et al. 2005
    pairs = [((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 0, 0), (50, -1, 2), 2.3669),
             ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195), ((50, 2.5, 0), (50, 3.2592, 0.335), 1.0),
             ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082)]
    for first, second, wanted in pairs:
        assert difference(np.array(first), np.array(second)) == pytest.approx(wanted, abs=6e-5)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_seed_draws_the_same_picture_and_every_part_is_labelled(kind):
    (picture_, labels), (again, _) = drawn(3, kind), drawn(3, kind)
    assert np.array_equal(picture_, again) and picture_.shape == (128, 128, 3)
    seen = {PART_LABELS[label] for label in np.unique(labels)} - {"background"}
    assert seen <= {f"{kind}/{part}" for part in PART_ROLES[kind]} and len(seen) >= 5


@pytest.mark.parametrize("kind", CLASSES)
def test_each_part_has_its_subjects_colour(kind):
    subject = unseen_subject(5, kind)
    picture_, labels = render(subject, Pose(), Scene("snow"))
    for part, role in PART_ROLES[kind].items():
        inside = labels == PART_LABELS.index(f"{kind}/{part}")
        if role != "white" and inside.sum() > 250:  # the outline colours smaller ones
            assert np.abs(np.median(picture_[inside], axis=0) - np.array(subject.colour(role))).max() <= 3


def test_training_pictures_never_show_a_palette_of_the_evaluation():
    assert not any(is_held_out(picture(index).subject) for index in range(300))
    assert all(is_held_out(unseen_subject(seed)) for seed in range(100))


def test_captions_say_what_they_are_asked_to():
    subject = unseen_subject(1, "cat")
    assert caption(subject) == "a photo of a cat"
    assert caption(subject, facing="left", scene="night") == "a photo of a cat facing left at night"
    assert " and " in caption(subject, colours=True)


def test_the_hosts_picture_and_mask_agree():
    image, mask = reference_picture(1, "robot", 2, "grass")
    assert image.shape == (1, 128, 128, 3) and mask.shape == (1, 128, 128) and 0.1 < mask.mean() < 0.6
    assert torch.equal(image, reference_picture(1, "robot", 2, "grass")[0])


def test_unknown_kinds_and_scenes_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="'dog' is not a Toybox class; choose one of robot"):
        unseen_subject(1, "dog")
    with pytest.raises(ValueError, match="'moon' is not a Toybox scene"):
        random_scene(random.Random(0), "moon")


def test_every_word_of_the_world_is_one_token_and_the_end_token_is_the_largest():
    tokens = vocabulary()
    assert all(word + "</w>" in tokens for word in words()) and len(set(tokens)) == len(tokens)
    assert tokens[-2:] == [START, END] and len(merges()) < 200
    assert set(SCENES["desert"].split()) <= set(words())


@pytest.mark.parametrize("kind", CLASSES)
def test_the_same_subject_has_no_error_and_another_one_has_much(kind):
    here, there, other = drawn(1, kind), drawn(2, kind), drawn(2, kind, subject=8)
    assert subject_error(*here, *here, kind) == 0
    assert subject_error(*here, *there, kind) < 3 < 12 < subject_error(*here, *other, kind)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_subject_is_at_no_distance_from_its_own_colours_and_far_from_others(kind):
    here, other = drawn(1, kind), drawn(2, "cat" if kind != "cat" else "bird", subject=8)
    palette = [colour for colour, _ in part_colours(*here, kind).values()]
    assert palette_distance(*here, kind, palette) == 0
    foreign = [colour for colour, _ in part_colours(*other, "cat" if kind != "cat" else "bird").values()]
    assert palette_distance(*here, kind, foreign) > 5
    assert palette_distance(*here, kind, []) is None and palette_distance(here[0], np.zeros_like(here[1]), kind, palette) is None


@pytest.mark.parametrize("kind", CLASSES)
def test_renders_are_pure_and_coherent_and_have_the_colours_they_are_named_for(kind):
    subject = unseen_subject(5, kind)
    here, labels = render(subject, Pose(), Scene("snow"))
    assert coherence(here, labels, kind) < 8 and purity(here, labels, kind) < 0.95 < purity(here, labels, kind, inset=1)
    named = dict(zip(ROLES, subject.colour_names))
    assert colours_followed(here, labels, kind, named) == 1
    first, second, third = subject.colour_names
    assert colours_followed(here, labels, kind, {"primary": second, "secondary": first}) == 0
    assert colours_followed(here, labels, kind, {"primary": first, "secondary": third}) == 0.5


def test_a_blotchy_part_is_less_pure_and_two_legs_of_two_colours_are_less_coherent():
    here, labels = render(unseen_subject(5, "cat"), Pose(), Scene("snow"))
    blotchy, uneven = here.copy(), here.copy()
    body, leg = labels == PART_LABELS.index("cat/body"), labels == PART_LABELS.index("cat/tail")
    blotchy[body & (np.indices(labels.shape)[1] % 2 == 0)] = (0, 255, 0)
    assert purity(blotchy, labels, "cat") < purity(here, labels, "cat") - 0.1
    uneven[leg] = (0, 255, 0)
    assert coherence(uneven, labels, "cat") > coherence(here, labels, "cat") + 10


def test_a_picture_without_the_subject_has_no_error_to_measure():
    picture_, labels = drawn(1, "car")
    assert subject_error(picture_, np.zeros_like(labels), picture_, labels, "car") is None
    nothing = np.zeros_like(labels)
    assert structure_iou(nothing, nothing) is None and purity(picture_, nothing, "car") is None
    assert coherence(picture_, nothing, "car") is None and colours_followed(picture_, nothing, "car", {"primary": "red"}) is None


def test_structure_overlap_is_one_for_the_same_parts_and_half_for_half():
    parts = np.zeros((4, 4), np.uint8)
    parts[:2] = 3
    half = parts.copy()
    half[1] = 0
    assert structure_iou(parts, parts) == 1 and structure_iou(parts, half) == 0.5


def test_the_measures_of_layout_see_a_moved_subject_and_not_a_recoloured_one():
    (one, parts), (other, others) = drawn(1, "cat", subject=1), drawn(1, "cat", subject=2)
    assert np.array_equal(parts, others), "the same pose and scene"
    assert silhouette_iou(parts, others) == 1 and background_change(one, parts, other, others) == 0
    assert edge_overlap(one, other) > 0.75, "black parts hide their outline"
    moved, elsewhere = np.roll(one, 20, axis=1), np.roll(parts, 20, axis=1)
    assert silhouette_iou(parts, elsewhere) < 0.8 and edge_overlap(one, moved) < 0.6
    assert background_change(one, parts, 255 - one, parts) > 20


def test_the_measures_of_layout_are_none_where_there_is_nothing_to_measure():
    flat, nothing = np.full((32, 32, 3), 128, np.uint8), np.zeros((32, 32), np.uint8)
    assert silhouette_iou(nothing, nothing) is None and edge_overlap(flat, flat) is None
    assert background_change(flat, nothing + 1, flat, nothing) is None


def test_recolouring_gives_each_part_the_references_colour_and_moves_no_line():
    (one, parts), (other, others) = drawn(1, "robot", subject=1), drawn(2, "robot", subject=2)
    before = subject_error(one, parts, other, others, "robot")
    picture = recoloured(one, parts, other, others, "robot")
    assert subject_error(picture, parts, other, others, "robot") < 0.1 * before
    assert edge_overlap(picture, one) > 0.8 and background_change(picture, parts, one, parts) == 0
    assert np.array_equal(recoloured(one, parts, other, others * 0, "robot"), one)


def test_the_shipped_judge_tells_parts_classes_and_scenes_of_unseen_subjects():
    figures = accuracy(load_judge(), count=60)
    assert figures["foreground_pixels"] > 0.85 and figures["class"] > 0.95 and figures["scene"] > 0.95


@pytest.mark.parametrize("kind", CLASSES)
def test_the_side_that_a_subject_faces_is_read_from_its_parts(kind):
    rng = random.Random(f"sides-{kind}")
    sides = ("left", "right") * 15
    read_sides = [facing_of(render(unseen_subject(number, kind), face(random_pose(rng), side), random_scene(rng))[1], kind)
                  for number, side in enumerate(sides)]
    assert np.mean([one == side for one, side in zip(read_sides, sides)]) > 0.95
    assert facing_of(np.zeros((128, 128), np.uint8), kind) is None
