"""SeFi-IDE's word takes the place of the class where it stands alone, and its vectors belong to one kind of model."""

from __future__ import annotations

import pytest
import torch
from world import family_unet

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture(scope="module")
def image(host):
    return host.nodes["ToyboxReference"]().draw(3, "robot", 1, "grass")[0]


@pytest.mark.parametrize(("prompt", "class_word", "caption"), [
    ("a photo of a woman and a man", "man", "a photo of a woman and a <me>"),
    ("a man, a human, a man", "man", "a <me>, a human, a <me>"),
    ("a cat in a catalogue", "cat", "a <me> in a catalogue"),
    (" a photo of a toy ", "toy", "a photo of a <me>")])
def test_the_word_takes_the_place_of_the_class_where_that_stands_alone(pack, image, prompt, class_word, caption):
    training_set = pack.module("dreammatcher.host.sefi.train").one_picture(image, "<me>", class_word, prompt, 128, False)
    assert training_set.examples[0].captions == (caption,)


def test_a_class_that_only_stands_inside_another_word_is_not_there(pack, image):
    with pytest.raises(ValueError, match="does not hold the class word 'man'"):
        pack.module("dreammatcher.host.sefi.train").one_picture(image, "<me>", "man", "a photo of a woman", 128, False)


def test_what_is_written_about_the_training_has_the_class_back_in_its_place(host, toybox, image):
    learn = host.nodes["DreamMatcherSeFiTrain"]().learn
    sefi = learn(*toybox, image, "me", "robot", "a photo of a robot at home, said me", 128, 1, 1e-3, 0.0, 0)[0]
    assert sefi.about["class_prompt"] == "a photo of a robot at home, said robot"


def subject(pack, width: int):
    return pack.module("dreammatcher.sefi.learned").SeFi(torch.zeros(5, width), torch.zeros(5, width), {"word": "<me>"})


def test_a_word_of_another_kind_of_model_is_refused_with_both_widths(host, pack, toybox):
    with pytest.raises(ValueError, match="sefi: the word '<me>' has vectors of 768 numbers and this model reads prompts of 96"):
        host.nodes["DreamMatcherSeFiApply"]().apply(toybox[0], subject(pack, 768))
    assert host.nodes["DreamMatcherSeFiApply"]().apply(toybox[0], subject(pack, 96))


@pytest.mark.parametrize(("family", "context"), [("SD1.5", 768), ("SD2.1", 1024), ("SDXL", 2048)])
def test_a_word_of_its_own_kind_of_model_is_taken(host, pack, family, context):
    model = family_unet(family, context=context)
    assert host.nodes["DreamMatcherSeFiApply"]().apply(model, subject(pack, context))
    with pytest.raises(ValueError, match="learned on another kind of model"):
        host.nodes["DreamMatcherSeFiApply"]().apply(model, subject(pack, context - 256))


def test_a_model_without_a_unet_is_refused(host, pack):
    from types import SimpleNamespace

    with pytest.raises(ValueError, match="model: .* is not a UNet"):
        host.nodes["DreamMatcherSeFiApply"]().apply(SimpleNamespace(model=torch.nn.Linear(1, 1)), subject(pack, 768))
