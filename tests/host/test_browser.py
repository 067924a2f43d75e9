"""The front end as a person uses it: the real server, a real browser, our widgets by mouse and keyboard.

Needs a Chromium or Chrome (CHROMIUM may name one). On a current upstream both of its renderers are driven.
"""

from __future__ import annotations

import json
import re

import pytest
from browser_page import EXAMPLES, NEEDS_A_BROWSER, SEEDS, Page, with_live_preview, workflow

from harness.blueprint import FILE, NAME, wiring
from harness.library import ROOT, upstream_path
from harness.serving import get

pytestmark = NEEDS_A_BROWSER


def inspector(page: Page):
    return page.tab.locator(".dreammatcher.inspector")


def test_the_inspector_answers_mouse_and_keyboard(page):
    page.load(workflow("dreammatcher_04_toybox"))
    page.queue()
    page.show("DreamMatcherPreview")
    page.picture("inspector")
    result = inspector(page).locator(".picture[tabindex]")
    cell = lambda: inspector(page).get_attribute("data-cell")  # noqa: E731
    box = result.bounding_box()
    assert box["width"] > 100 and abs(box["width"] - box["height"]) < 2, "the picture keeps its proportions"
    result.hover(position={"x": box["width"] * 0.53, "y": box["height"] * 0.28})
    assert cell() == "8,4"
    result.click(position={"x": box["width"] * 0.53, "y": box["height"] * 0.28})
    page.tab.keyboard.press("ArrowRight")
    page.tab.keyboard.press("ArrowDown")
    assert cell() == "9,5"
    page.tab.keyboard.press("Shift+ArrowLeft")
    assert cell() == "4,5"
    says = inspector(page).locator(".parts .says").first
    wanted = r"(matched here( by \d+%)?|outside the subject: .*|not trusted .*), similarity \d\.\d\d"
    assert re.fullmatch(wanted, says.inner_text())
    assert "few steps: 5 noise levels lie between" in inspector(page).locator(".remark").inner_text()
    page.tab.keyboard.press("Delete")
    assert page.run("return app.graph._nodes.some((own) => own.type === 'DreamMatcherPreview')"), "keys stay in the widget"
    points = inspector(page).locator(".point")
    assert points.count() == 2 and points.first.is_visible() and points.last.is_visible()


SET_START = """
    const apply = app.graph._nodes.find((own) => own.type === "DreamMatcherApply");
    apply.widgets.find((own) => own.name === "start").value = given;
"""
#: texts on the sampler that ran: our own note, or what newer front ends show themselves
NOTED = """
    const node = app.graph._nodes.find((own) => own.type === "KSampler" && own.dreammatcherNote);
    const widgets = app.graph._nodes.flatMap((own) => own.widgets ?? []);
    const shown = widgets.filter((widget) => widget.name?.startsWith("$$node-text"));
    return [node?.dreammatcherNote ?? "", ...shown.map((widget) => String(widget.value ?? ""))].join(" ");
"""


def test_a_run_that_matched_nothing_says_so_on_the_sampler_and_empties_the_inspector(page):
    page.load(workflow("dreammatcher_04_toybox"))
    page.queue()
    page.run(SET_START + "await app.queuePrompt(0, 1)", 0.999)
    page.tab.wait_for_function("() => !document.querySelector('.dreammatcher.inspector').dataset.cell", timeout=240_000)
    assert "Nothing was matched: no step lies between start and end" in inspector(page).inner_text()
    assert inspector(page).locator(".parts").is_hidden()
    assert "no step lies between start and end" in page.run(NOTED)
    page.show("DreamMatcherPreview")
    page.picture("nothing_matched")
    page.run(SET_START, 0.08)
    page.queue()
    assert page.run("return app.graph._nodes.every((own) => !own.dreammatcherNote)")


def test_steps_overlays_and_the_comparison_with_plain_change_what_is_shown(page):
    page.load(workflow("dreammatcher_04_toybox"))
    page.queue()
    page.show("DreamMatcherPreview")
    parts = inspector(page).locator(".parts")
    before = parts.locator("span").last.inner_text()
    step = parts.get_by_label("step")
    step.focus()
    page.tab.keyboard.press("Home")
    page.tab.wait_for_function(
        "(old) => [...document.querySelectorAll('.dreammatcher .parts .row span')].pop().innerText !== old", arg=before)
    assert parts.locator("span").last.inner_text().startswith("1 of ")
    parts.get_by_label("overlay").select_option("trusted")
    assert parts.locator("canvas").last.is_visible()
    page.tab.get_by_label("plain to DreamMatcher").focus()
    page.tab.keyboard.press("Home")
    front = inspector(page).locator(".picture[tabindex] img").last
    clip = lambda: front.evaluate("image => getComputedStyle(image).clipPath")  # noqa: E731
    assert "100%" in clip(), "all the way to plain"
    for _ in range(30):
        page.tab.keyboard.press("ArrowRight")
    assert clip() == "inset(0px 0px 0px 70%)", "three tenths of DreamMatcher, on the right, where its name stands"
    page.picture("overlay_and_plain")


def test_the_live_preview_shows_the_picture_while_it_is_made(page):
    page.load(with_live_preview(steps=9))
    page.queue()
    page.show("DreamMatcherApply")
    live = page.tab.locator(".dreammatcher.live")
    live.locator("img").wait_for(state="visible")
    assert "of the subject is matched" in live.inner_text()
    page.tab.wait_for_function("() => document.querySelector('.dreammatcher.live img').naturalWidth === 256")
    page.picture("live")


def test_words_are_picked_by_click_and_kept_in_the_saved_workflow(page):
    page.load(workflow("dreammatcher_01_easy_toybox"))
    page.show("DreamMatcherEasy")
    chips = page.tab.locator(".dreammatcher.picker .chip")
    assert {"a", "photo", "of", "cat"} <= set(chips.all_inner_texts()) and "night" not in chips.all_inner_texts()
    assert page.value("DreamMatcherEasy", "subject_words") == "cat"
    page.picture("picker")
    page.tab.locator(".chip", has_text="photo").click()
    assert page.value("DreamMatcherEasy", "subject_words") == "photo cat"
    page.tab.locator(".chip", has_text="photo").click()
    page.tab.locator(".chip", has_text="cat").click()
    assert page.value("DreamMatcherEasy", "subject_words") == ""
    page.tab.locator(".chip", has_text="photo").click()
    saved = page.run("return app.graph.serialize()")
    easy = next(node for node in saved["nodes"] if node["type"] == "DreamMatcherEasy")
    assert [value for value in easy["widgets_values"] if isinstance(value, str)][-2:] == ["photo", "best"]
    page.load(saved)
    page.tab.wait_for_timeout(500)
    assert page.value("DreamMatcherEasy", "subject_words") == "photo"
    pressed = page.tab.locator(".chip[aria-pressed=true]")
    assert pressed.all_inner_texts() == ["photo"]


def test_the_node_says_under_its_words_what_it_takes_before_and_after_a_run_until_they_change(page):
    graph = workflow("dreammatcher_01_easy_toybox")
    easy = next(node for node in graph["nodes"] if node["type"] == "DreamMatcherEasy")
    easy["widgets_values"] = [value.replace("cat at night", "cats at night") if isinstance(value, str) else value
                              for value in easy["widgets_values"]]
    next(node for node in graph["nodes"] if node["type"] == "ToyboxReference")["widgets_values"][0] = next(SEEDS)
    page.load(graph)
    page.show("DreamMatcherEasy")
    picker = page.tab.locator(".dreammatcher.picker")
    assert picker.locator(".chip[aria-pressed=true]").all_inner_texts() == ["cats"] and not picker.locator(".missing").count()
    remark = picker.locator(".remark")
    remark.wait_for(state="visible")
    said = "prompt: subject_words: 'cat' is taken as 'cats', which is in the prompt"
    assert remark.inner_text() == said
    page.queue()
    assert remark.inner_text() == said
    page.picture("remark")
    picker.locator(".chip", has_text="photo").click()
    page.tab.wait_for_timeout(1500)
    assert remark.all_inner_texts() == ["reference_prompt: subject_words: 'cats' is taken as 'cat', which is in the prompt"]


def test_nodes_that_train_keep_their_seed_from_one_queue_to_the_next(page):
    kept = page.run("""return given.map((kind) => {
        const node = LiteGraph.createNode(kind);
        app.graph.add(node);
        return node.widgets.find((own) => own.name === "control_after_generate")?.value;
    })""", ["DreamMatcherLearn", "DreamMatcherPriorSet", "DreamMatcherDreamBooth", "DreamMatcherTextualInversion",
            "DreamMatcherCustomDiffusion", "KSampler"])
    assert kept == ["fixed"] * 5 + ["randomize"]


def test_a_training_set_says_on_its_node_what_it_made_of_the_pictures(page):
    graph = workflow("dreammatcher_13_learn_toybox")
    kept = [node for node in graph["nodes"] if node["type"] in ("ToyboxReference", "ImageBatch", "DreamMatcherTrainingSet")]
    numbers = {node["id"] for node in kept}
    graph["links"] = [link for link in graph["links"] if {link[1], link[3]} <= numbers]
    known = {link[0] for link in graph["links"]}
    for node in kept:
        for output in node.get("outputs", []):
            output["links"] = [link for link in output.get("links") or [] if link in known]
    next(node for node in kept if node["type"] == "ToyboxReference")["widgets_values"][0] = next(SEEDS)
    page.load({**graph, "nodes": kept})
    page.show("DreamMatcherTrainingSet")
    report = page.tab.locator(".dreammatcher.report")
    page.run("await app.queuePrompt(0, 1)")
    report.wait_for(state="visible", timeout=120_000)
    assert report.inner_text().startswith("3 pictures of 'sks cat'\n128x128 as 128x128: a photo of a sks cat")
    page.picture("report")


@pytest.mark.skipif(upstream_path() is None, reason="the packaged host knows no subgraphs")
def test_the_blueprint_is_offered_and_opens_to_the_standard_wiring(page, server):
    offered = get(f"{server}/global_subgraphs")
    ours = [entry for entry in offered.values() if entry["name"] == NAME]
    assert len(ours) == 1 and ours[0]["info"]["node_pack"].endswith("comfyui-dreammatcher")
    page.load(json.loads(FILE.read_text(encoding="utf-8")))
    page.run("app.canvas.ds.offset = [300, 200]; app.canvas.setDirty(true, true)")
    page.tab.wait_for_timeout(800)
    page.picture("blueprint")
    prompt = page.run("return (await app.graphToPrompt()).output")
    nodes = {key.split(":")[-1]: entry for key, entry in prompt.items()}
    assert {key: entry["class_type"] for key, entry in nodes.items()} == {
        key: entry["class_type"] for key, entry in wiring().items()}
    assert nodes["2"]["inputs"]["reference_prompt"] == "a photo of a dog" and nodes["2"]["inputs"]["subject_words"] == "dog"
    assert nodes["7"]["inputs"]["reference"][0].split(":")[-1] == "5" and nodes["7"]["inputs"]["strength"] == 1.0
    outside = page.run("return app.graph._nodes[0].inputs.map((slot) => slot.name)")
    assert {"reference_mask", "strength"} <= set(outside)
    page.run("app.graph._nodes[0].widgets.find((own) => own.name === 'strength').value = 0.5")
    prompt = page.run("return (await app.graphToPrompt()).output")
    assert next(entry for entry in prompt.values() if entry["class_type"] == "DreamMatcherApply")["inputs"]["strength"] == 0.5
    chip = page.tab.locator(".dreammatcher.picker .chip", has_text="photo")
    chip.click()
    prompt = page.run("return (await app.graphToPrompt()).output")
    subjects = [entry["inputs"]["subject_words"] for entry in prompt.values() if entry["class_type"] == "DreamMatcherSubjects"]
    assert subjects == ["photo dog"]


def test_every_example_opens_as_the_prompt_it_was_made_from(page):
    for name, (make, _) in EXAMPLES.items():
        page.load(json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")))
        queued = page.run("return (await app.graphToPrompt()).output")
        for number, entry in make().items():
            assert queued[number]["class_type"] == entry["class_type"], (name, number)
            inputs = queued[number]["inputs"]
            assert {key: inputs.get(key) for key in entry["inputs"]} == entry["inputs"], (name, number)


@pytest.mark.skipif(upstream_path() is None, reason="the packaged front end forgets outputs when a graph is loaded")
def test_the_inspector_is_there_again_after_an_undo(page):
    page.load(workflow("dreammatcher_04_toybox"))
    page.queue()
    page.run("await app.loadGraphData(given, false)", page.run("return app.graph.serialize()"))
    page.tab.wait_for_timeout(2000)
    assert page.run("return app.graph._nodes.find((own) => own.type === 'DreamMatcherPreview').widgets"
                    ".find((own) => own.name === 'match inspector').element.dataset.cell")


def test_a_workflow_from_before_there_was_a_preset_keeps_its_way(page):
    graph = workflow("dreammatcher_01_easy_toybox")
    easy = next(node for node in graph["nodes"] if node["type"] == "DreamMatcherEasy")
    assert easy["widgets_values"].pop() == "best"
    kept = {}
    for name, given in (("older", graph), ("now", workflow("dreammatcher_01_easy_toybox"))):
        page.load(given)
        queued = page.run("return (await app.graphToPrompt()).output")
        kept[name] = next(node for node in queued.values() if node["class_type"] == "DreamMatcherEasy")["inputs"]["preset"]
    assert kept == {"older": "balanced", "now": "best"}


def test_our_widgets_add_no_input_to_what_is_queued(page):
    page.load(workflow("dreammatcher_04_toybox"))
    prompt = page.run("return (await app.graphToPrompt()).output")
    offered = page.run("return Object.fromEntries(await Promise.all(given.map(async (name) => "
                       "[name, (await (await fetch(`/object_info/${name}`)).json())[name].input])))",
                       sorted({node["class_type"] for node in prompt.values()}))
    for node in prompt.values():
        declared = offered[node["class_type"]]
        assert set(node["inputs"]) <= set(declared["required"]) | set(declared.get("optional", {})), node


def test_the_menu_of_our_nodes_shows_the_report_and_copies_it(page, server):
    page.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.load(workflow("dreammatcher_01_easy_toybox"))
    page.choose("DreamMatcherEasy", "DreamMatcher Report")
    shown = page.tab.locator(".dreammatcher-installation")
    shown.wait_for(state="visible")
    page.picture("report")
    assert shown.inner_text().startswith("DreamMatcher Report\n- DreamMatcher: ") and "other packs" in shown.inner_text()
    assert page.tab.get_by_text("Copied. Paste it into your bug report.").is_visible()
    assert page.run("return navigator.clipboard.readText()") == shown.inner_text()
