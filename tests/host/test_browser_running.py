"""What a person sees while and after a graph runs: with and without DreamMatcher, and with one of our nodes bypassed."""

from __future__ import annotations

import pytest
from browser_page import EXAMPLES, NEEDS_A_BROWSER, SEEDS, Page, workflow

from harness.browser import FIT
from harness.serving import get

pytestmark = NEEDS_A_BROWSER


def test_the_easy_example_compares_with_the_plain_picture_of_the_same_seed(page):
    page.load(workflow("dreammatcher_01_easy_toybox", steps=3))
    page.queue()
    page.show("DreamMatcherPreview")
    inspector = page.tab.locator(".dreammatcher.inspector")
    slider = inspector.get_by_label("plain to DreamMatcher")
    assert slider.is_visible()
    slider.focus()
    page.tab.keyboard.press("Home")
    sources = [image.get_attribute("src") for image in inspector.locator(".picture[tabindex] img").all()]
    assert len(set(sources)) == 2 and all(sources), "the plain picture is another one"
    assert "100%" in inspector.locator(".picture[tabindex] img").last.evaluate("image => getComputedStyle(image).clipPath")
    page.picture("easy_compared")


#: ends of runs since the page was opened, and what of them failed
WATCH = """
    const { api } = window.comfyAPI?.api ?? await import("/scripts/api.js");
    window.ended = []; window.failed = [];
    api.addEventListener("execution_error", ({ detail }) => {
        window.failed.push(detail.exception_message);
        window.ended.push(1);
    });
    api.addEventListener("execution_success", () => window.ended.push(1));
    api.addEventListener("executing", ({ detail }) => { if (detail === null) window.ended.push(1); });
"""
BYPASSED = 4


def bypass(page: Page, kind: str) -> None:
    """Ctrl+B on a node, by mouse and keyboard."""
    page.show(kind)
    page.tab.mouse.click(220, 75)
    page.tab.keyboard.press("Control+b")
    mode = page.run("return app.graph._nodes.find((own) => own.type === given).mode", kind)
    assert mode == BYPASSED


def run_to_its_end(page: Page) -> None:
    page.run(WATCH + "await app.queuePrompt(0, 1)")
    page.tab.wait_for_function("() => window.ended.length", timeout=240_000)
    assert page.run("return window.failed") == []
    assert not page.run("return Object.keys(app.lastNodeErrors ?? {})")


def test_with_apply_bypassed_the_graph_runs_and_preview_says_that_nothing_was_matched(page):
    page.load(workflow("dreammatcher_04_toybox", steps=3))
    bypass(page, "DreamMatcherApply")
    run_to_its_end(page)
    page.show("DreamMatcherPreview")
    page.tab.locator(".dreammatcher.inspector").get_by_text("Nothing was matched: there is no trace").wait_for(state="visible")
    page.picture("apply_bypassed")


#: what a node of a class says: newer front ends show it as a text of theirs, ours draws it in older ones
NOTE = """
    const node = app.graph._nodes.find((own) => own.type === given);
    return node.dreammatcherNote || node.widgets.find((own) => own.name === "$$node-text-preview")?.value || "";
"""


def test_with_easy_bypassed_the_node_says_that_strength_0_is_the_plain_picture_and_so_it_is(page):
    page.load(workflow("dreammatcher_01_easy_toybox", steps=3))
    bypass(page, "DreamMatcherEasy")
    page.run("await app.queuePrompt(0, 1)")
    for _ in range(60):
        if said := page.run(NOTE, "DreamMatcherEasy"):
            break
        page.tab.wait_for_timeout(500)
    assert "set its strength to 0 instead, which is the plain picture" in said
    page.picture("easy_bypassed")
    page.tab.keyboard.press("Escape")
    page.run("""
        app.ui.dialog?.close?.();
        const easy = app.graph._nodes.find((own) => own.type === "DreamMatcherEasy");
        easy.mode = 0;
        easy.widgets.find((own) => own.name === "strength").value = 0;
    """)
    run_to_its_end(page)
    page.tab.locator(".dreammatcher.inspector").get_by_text("Nothing was matched: strength is 0").wait_for(state="attached")


def test_with_guidance_bypassed_the_graph_runs_and_the_match_is_shown(page):
    page.load(workflow("dreammatcher_04_toybox", steps=3))
    bypass(page, "DreamMatcherGuidance")
    run_to_its_end(page)
    page.tab.wait_for_function("() => document.querySelector('.dreammatcher.inspector').dataset.cell", timeout=20_000)
    page.show("DreamMatcherPreview")
    page.picture("guidance_bypassed")


RECTANGLES = {
    "LiteGraph": "return app.graph._nodes.map((node) => [node.type, ...node.getBounding()])",
    "Nodes 2.0": """return [...document.querySelectorAll('[data-node-id]')].map((node) => {
        const box = node.getBoundingClientRect();
        return [app.graph.getNodeById(node.dataset.nodeId)?.type, box.x, box.y, box.width, box.height];
    })""",
}


def overlaps(boxes: list[list]) -> list[tuple[str, str]]:
    return [(a[0], b[0]) for index, a in enumerate(boxes) for b in boxes[:index]
            if min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) > 2 and min(a[2] + a[4], b[2] + b[4]) - max(a[2], b[2]) > 2]


#: short runs, and every live picture shown
SHORT = """
    for (const node of app.graph._nodes) for (const widget of node.widgets ?? []) {
        if (widget.name in given) widget.value = given[widget.name];
        if (widget.name === "seed") widget.value = given.at;
    }
"""
SHORTER = {"steps": 3, "count": 2, "live_preview": "trusted"}
#: its run takes minutes, for which no widget asks
LONG = ("dreammatcher_15_learn_easy_toybox",)
SAVES, LOADS = "dreammatcher_11_save_reference_toybox", "dreammatcher_12_load_reference_toybox"


def short_run(page: Page, name: str) -> None:
    page.load(workflow(name, steps=3))
    page.run(SHORT, {**SHORTER, "at": next(SEEDS)})
    run_to_its_end(page)


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_node_covers_another(page, name):
    """After a run with the live preview on; where a checkpoint of the user's is needed, after it is opened."""
    if name == LOADS:
        short_run(page, SAVES)
    if "toybox" in name and name not in LONG:
        short_run(page, name)
    else:
        page.load(workflow(name))
    page.tab.wait_for_timeout(1500)
    boxes = page.run(RECTANGLES[page.renderer])
    page.run(FIT)
    page.picture("all_" + name)
    assert len(boxes) >= 5 and overlaps(boxes) == []


#: the packaged host has no other node that makes a batch of pictures
NEEDED = {"ImageBatch"}


def test_no_example_has_a_node_that_the_host_calls_deprecated(server):
    kinds = {entry["class_type"] for make, _ in EXAMPLES.values() for entry in make().values()}
    offered = get(f"{server}/object_info")
    assert kinds <= set(offered)
    assert [kind for kind in sorted(kinds - NEEDED) if offered[kind].get("deprecated")] == []
