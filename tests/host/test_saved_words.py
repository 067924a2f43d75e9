"""The words that a node says to write in prompts are those that the captions held while the subject was learned."""

from __future__ import annotations

import pytest
from world import robots

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture(scope="module")
def pictures(host):
    return robots(host, 3)


@pytest.fixture
def make(host, pictures, model_folder):
    model_folder("loras"), model_folder("embeddings")

    def make_set(**changes):
        chosen = {"identifier": "sks", "class_word": "robot", "template": "photo", "resolution": 128, "images": pictures}
        return host.nodes["DreamMatcherTrainingSet"]().make(**{**chosen, **changes})["result"][0]
    return make_set


def said(host, learned) -> str:
    return host.nodes["DreamMatcherSaveLearned"]().save(learned, "saved words")["ui"]["text"][0]


def dreambooth(host, fresh, training_set):
    return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, "LoRA", 1, 1e-3, 0)[2]


@pytest.mark.parametrize(("captions", "words"), [
    ("", "sks robot"),
    ("a sks robot in snow\na sks robot on grass\nsks, a portrait", "sks robot"),
    ("sks in snow\nsks on grass\na sks robot", "sks"),
    ("a sks robots toy\nsks on grass\nrobot sks", "sks")])
def test_a_lora_is_called_as_in_most_of_its_captions(host, fresh, make, captions, words):
    assert f"and write {words} in prompts." in said(host, dreambooth(host, fresh, make(captions=captions)))


def test_a_lora_without_a_class_is_called_by_its_identifier(host, fresh, make):
    assert "and write sks in prompts." in said(host, dreambooth(host, fresh, make(class_word="")))


def test_an_embedding_stands_where_its_word_stood(host, fresh, make):
    learn = host.nodes["DreamMatcherTextualInversion"]().learn
    learned = learn(*fresh, make(identifier="<me>"), "robot", 1, 1, 1e-3, 0)[2]
    assert ". Write embedding:saved_words" in said(host, learned) and " robot in prompts." in said(host, learned)
    alone = learn(*fresh, make(identifier="<me>", class_word=""), "robot", 1, 1, 1e-3, 0)[2]
    assert " robot " not in said(host, alone)


def test_custom_diffusion_names_the_embedding_and_the_class_with_the_lora_too(host, fresh, make):
    training_set = make(identifier="<me>")
    learned = host.nodes["DreamMatcherCustomDiffusion"]().learn(*fresh, training_set, "robot", 1, 1e-3, 0, sizes=False)[2]
    lines = said(host, learned).splitlines()
    assert len(lines) == 2 and all("embedding:saved_words" in line and " robot in prompts." in line for line in lines)


def test_vico_names_its_word_and_the_class_when_it_is_saved_and_when_it_is_loaded(host, fresh, make):
    vico = host.nodes["DreamMatcherViCoTrain"]().learn(*fresh, make(identifier="<me>"), "robot", 1, 1e-3, 1e-3, 0)[0]
    done = host.nodes["DreamMatcherViCoSave"]().save(vico, "saved words")
    assert "write embedding:saved_words" in done["ui"]["text"][0] and " robot in prompts." in done["ui"]["text"][0]
    loaded = host.nodes["DreamMatcherViCoLoad"]().load(fresh[1], done["result"][0], "(in the file)")
    assert loaded["ui"]["text"] == ["write in prompts: <me> robot"]
