"""What subject words will be taken as is said before a run, and a typo is refused without a traceback."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from harness.examples import easy, full_control
from harness.library import ROOT
from harness.serving import wait_until


@pytest.fixture(scope="module")
def module(pack):
    return pack.module("dreammatcher.host.matching.words_ahead")


def both(module, reference: str, target: str, words: str) -> dict:
    return module.ahead({"reference_prompt": reference, "prompt": target}, words)


NOTHING = {"said": [], "error": "", "word": "", "nearest": ""}


def test_a_word_that_is_there_is_no_matter(module):
    assert both(module, "a photo of a cat", "a cat at night", "cat") == NOTHING
    assert module.ahead({"prompt": "two (dogs:1.2) on grass"}, "dogs") == NOTHING


@pytest.mark.parametrize("text, word, nearest", [
    ("a photo of a cat at night", "caat", "cat"), ("a photo of a cat at night", "dog", "cat"),
    ("a photo of a robot in the snow", "robto", "robot"), ("an oil painting of two Foxes", "foxxes", "Foxes"),
    ("1girl, red hair, green eyes", "greem", "green"), ("on the", "cat", "")])
def test_a_word_that_is_missing_has_its_sentence_and_the_one_that_was_meant(module, text, word, nearest):
    answer = module.ahead({"prompt": text}, word)
    assert answer["error"].startswith(f"subject_words: {word!r} is not in the prompt; its words are: ")
    assert (answer["word"], answer["nearest"], answer["said"]) == (word, nearest, [])


def test_of_two_prompts_the_one_is_named_and_what_is_offered_stands_in_both(module):
    answer = both(module, "a photo of a cat in the desert", "a cat at night", "desert cat")
    assert answer["error"].startswith("prompt: subject_words: 'desert' is not in the prompt") and answer["word"] == "desert"
    assert answer["nearest"] == "cat"


def test_what_empty_words_take_is_said_in_the_words_of_the_run(module, host, toybox):
    given = ("a photo of a cat in the desert", "a photo of a cat at night")
    answer = both(module, *given, "")
    assert answer == {**NOTHING, "said": ["subject_words: none given; the words that both prompts share are taken: cat"]}
    prompt = easy()
    prompt["3"]["inputs"].update(subject_words="", strength=0.0)
    prompt["5"]["inputs"]["steps"] = prompt["10"]["inputs"]["steps"] = 1
    assert list(host.run(prompt).ui["3"]["text"]) == answer["said"]
    alone = module.ahead({"prompt": "1girl, red hair, outdoors"}, "")
    assert alone["said"] == ["subject_words: none given; these words of the prompt are taken: girl red hair"]


@pytest.mark.parametrize("reference, target, said", [
    ("a photo of cats", "a cat at night", "the words that both prompts share are taken: cat"),
    ("a photo of a cat", "a dog at night", "the prompts share no word: 'cat' and 'dog'; name the subject in both"),
    ("in the desert", "in the desert", "the words that both prompts share are taken: desert")])
def test_of_two_prompts_without_words_it_is_said_what_they_share(module, reference, target, said):
    assert said in both(module, reference, target, " ")["said"][0]


def test_nothing_is_logged_while_somebody_types(module, caplog):
    with caplog.at_level("DEBUG"):
        for words in ("", "cat", "caat", "robots"):
            module.ahead({"prompt": "<lora:x:1> a photo of a cat and a robot BREAK"}, words)
            both(module, "a photo of a cat", "in the desert", words)
    assert not [record for record in caplog.records if "DreamMatcher" in record.getMessage()]


@pytest.mark.parametrize("words, text", [
    ("cat", "a concatenation"), ("k-on!", "k-on poster"), ("foxes", "a fox"), ("hatsune_miku", "Hatsune Miku"), ("猫", "a cat"),
    ("embedding:me", "a cat"), ("cat", "ein Kätzchen"), ("caat", "a {cat|dog}"), ("caat", None), (None, "a cat"), ("", "a cat")])
def test_what_only_the_run_can_know_is_left_to_it(module, words, text):
    assert module.refusal({"prompt": text}, words) is True


@pytest.mark.parametrize("change, inside", [
    ({"5": {"subject_words": "zebra"}}, "subject_words: 'zebra' is not in the prompt; its words are: a, photo"),
    ({"5": {"prompt": ""}}, "subject_words: 'robot' is not in the prompt; its words are: (the prompt is empty)")])
def test_a_typo_is_refused_before_the_run_by_subject(host, change, inside):
    """The packaged host validates only what required inputs need: there the reference's subject is refused in the run."""
    prompt = full_control()
    for number, inputs in change.items():
        prompt[number]["inputs"].update(inputs)
    with pytest.raises(ValueError, match="the host refused the prompt") as refused:
        host.check(prompt)
    assert inside in str(refused.value)


def post(address: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_answers_and_a_typo_leaves_no_traceback_in_its_console(server):
    console = ROOT / "build" / "test-words-ahead" / "server.log"
    before = len(console.read_text(encoding="utf-8"))
    status, answer = post(f"{server}/dreammatcher/words", {"prompts": {"prompt": "a photo of a cat"}, "words": "caat"})
    assert status == 200 and answer["nearest"] == "cat"
    prompt = easy()
    prompt["3"]["inputs"]["subject_words"] = "caat"
    status, answer = post(f"{server}/prompt", {"prompt": prompt})
    said = "reference_prompt: subject_words: 'caat' is not in the prompt; its words are: a, photo"
    assert status == 400 and any(said in error["details"] for error in answer["node_errors"]["3"]["errors"])
    log = wait_until(lambda: console.read_text(encoding="utf-8")[before:], 10)
    assert said in log and "Traceback" not in log


@pytest.mark.parametrize("body", [[], {}, {"prompts": {}, "words": ""}, {"prompts": {"a": "", "b": "", "c": ""}, "words": ""},
                                  {"prompts": ["a"], "words": ""}])
def test_a_question_that_is_none_is_refused(server, body):
    status, answer = post(f"{server}/dreammatcher/words", body)
    assert status == 400 and answer["error"]
