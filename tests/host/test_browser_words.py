"""The word picker while somebody types, and errors on the node that threw them."""

from __future__ import annotations

import json

import pytest
from browser_page import NEEDS_A_BROWSER, Page, workflow

from harness.blueprint import FILE
from harness.library import upstream_path

pytestmark = NEEDS_A_BROWSER


SET = """
    const widget = app.graph._nodes.find((own) => own.type === given[0]).widgets.find((own) => own.name === given[1]);
    widget.value = given[2];
    widget.callback?.(given[2]);
"""


def easy(page: Page) -> None:
    page.load(workflow("dreammatcher_01_easy_toybox", steps=3))
    page.show("DreamMatcherEasy")


def test_a_word_that_is_missing_has_its_sentence_under_the_picker_and_a_button_with_the_one_that_was_meant(page):
    easy(page)
    picker = page.tab.locator(".dreammatcher.picker")
    fault = picker.locator(".fault")
    page.tab.wait_for_timeout(800)
    assert fault.count() == 0
    page.run(SET, ["DreamMatcherEasy", "subject_words", "caat"])
    fault.wait_for(state="visible")
    assert "subject_words: 'caat' is not in the prompt; its words are: a, photo, of, a, cat" in fault.inner_text()
    page.picture("missing_word")
    box, inside = picker.bounding_box(), fault.get_by_role("button").bounding_box()
    assert inside["y"] + inside["height"] <= box["y"] + box["height"] + 1, "the button is seen without scrolling"
    fault.get_by_role("button", name="use 'cat'").click()
    assert page.value("DreamMatcherEasy", "subject_words") == "cat"
    fault.wait_for(state="detached")


def test_what_empty_words_take_is_said_before_the_run(page):
    easy(page)
    page.run(SET, ["DreamMatcherEasy", "subject_words", ""])
    remark = page.tab.locator(".dreammatcher.picker .remark")
    remark.wait_for(state="visible")
    assert remark.inner_text() == "subject_words: none given; the words that both prompts share are taken: cat"
    page.picture("empty_words")
    page.run(SET, ["DreamMatcherEasy", "prompt", "a dog at night"])
    remark.get_by_text("the prompts share no word: 'cat' and 'dog'; name the subject in both").wait_for(state="visible")


def test_an_error_is_read_on_the_node_that_threw_it_until_the_next_run(page):
    page.load(workflow("dreammatcher_04_toybox", steps=3))
    page.run(SET, ["DreamMatcherApply", "layers", "99"])
    page.show("DreamMatcherApply")
    page.run("await app.queuePrompt(0, 1)")
    fault = page.tab.locator(".dreammatcher.report.fault")
    fault.wait_for(state="visible", timeout=120_000)
    page.picture("error_on_node")
    assert fault.inner_text() == ("layers: '99' is not among this model's output blocks 2, 3, 4, 5; leave it empty for all of "
                                  "them")
    saved = page.run("return app.graph.serialize().nodes.find((own) => own.type === 'DreamMatcherApply').widgets_values")
    assert saved[:4] == [1, 0.2, 1, "99"] and len(saved) == 6, "it is stored nowhere"
    page.run(SET, ["DreamMatcherApply", "layers", ""])
    page.run("await app.queuePrompt(0, 1)")
    fault.wait_for(state="hidden", timeout=120_000)


#: the name that is seen of a text box with something in it, and that a screen reader says
NAMED = """
    const box = [...document.querySelectorAll("textarea")].find((own) => own.value === given);
    const seen = box.classList.contains("dreammatcher-named") ? decodeURIComponent(getComputedStyle(box).backgroundImage) : "";
    const label = document.querySelector(`label[for="${box.id}"]`) ?? box.parentElement.querySelector("label");
    return [/>([^<]*)<.text>/.exec(seen)?.[1] ?? label?.innerText, box.getAttribute("aria-label") ?? label?.innerText];
"""


def test_a_text_box_that_is_filled_shows_its_name(page):
    easy(page)
    text = "a photo of a cat at night"
    page.tab.wait_for_function("(text) => [...document.querySelectorAll('textarea')].some((own) => own.value === text)", arg=text)
    page.picture("named_box")
    assert page.run(NAMED, text) == ["prompt", "prompt"]


@pytest.mark.skipif(upstream_path() is None, reason="the packaged host knows no subgraphs")
def test_a_text_box_of_the_blueprint_shows_its_name_too(page):
    page.load(json.loads(FILE.read_text(encoding="utf-8")))
    page.run("app.canvas.ds.offset = [300, 200]; app.canvas.setDirty(true, true)")
    page.tab.locator(".dreammatcher.picker .chip").first.wait_for(state="visible")
    page.picture("named_box_of_the_blueprint")
    assert page.run(NAMED, "a photo of a dog on the beach") == ["prompt", "prompt"]
