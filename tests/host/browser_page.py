"""ComfyUI in a tab of a real browser, as the tests of the front end drive it."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness.browser import BROWSER, WANTED, open_host, run
from harness.examples import EXAMPLES as EVERYWHERE
from harness.examples_transformers import NEWER
from harness.library import ROOT, upstream_path

PICTURES = ROOT / "build" / "browser"
RENDERERS = ["LiteGraph", "Nodes 2.0"] if upstream_path() else ["LiteGraph"]
#: the example workflows whose nodes this host has
EXAMPLES = {**EVERYWHERE, **NEWER} if upstream_path() else EVERYWHERE
NEEDS_A_BROWSER = pytest.mark.skipif(BROWSER is None or not WANTED, reason="no Chromium or Chrome here (CHROMIUM may name one), "
                                     "or BROWSER=0")
OWN_PAGE = re.compile(r"/docs/\w+/\w+\.md")  # the host asks for a help page in the interface's language first
SEEDS = itertools.count(random.SystemRandom().getrandbits(30))


class Page:
    """ComfyUI in a tab."""

    def __init__(self, tab, renderer: str):
        self.tab, self.renderer, self.errors = tab, renderer, []
        tab.on("console", lambda message: message.type == "error" and self._note(f"{message.text} {message.location}"))
        tab.on("pageerror", lambda error: self._note(f"{error} {error.stack}"))

    def _note(self, text: str) -> None:
        if "dreammatcher" in text.lower() and not OWN_PAGE.search(text):
            self.errors.append(text)

    def run(self, script: str, argument=None):
        return run(self.tab, script, argument)

    def clear(self) -> None:
        """The page as it was opened: no graph, no dialog, no errors."""
        for _ in range(2):
            self.tab.keyboard.press("Escape")
        self.tab.mouse.move(750, 950)  # off the nodes, whose tooltips stay
        self.run("app.ui.dialog?.close?.(); app.graph.clear(); await new Promise((done) => setTimeout(done, 300))")
        self.errors.clear()

    def load(self, workflow: dict) -> None:
        self.run("await app.loadGraphData(given); app.canvas.ds.scale = 0.8; app.canvas.setDirty(true, true)", workflow)

    def show(self, kind: str) -> None:
        """Brings a node of a class into view."""
        self.run("const node = app.graph._nodes.find((own) => own.type === given);"
                 "app.canvas.ds.scale = 1; app.canvas.ds.offset = [140 - node.pos[0], 90 - node.pos[1]];"
                 "app.canvas.setDirty(true, true)", kind)
        self.tab.wait_for_timeout(400)

    def choose(self, kind: str, entry: str) -> None:
        """Chooses an entry of the menu of a node of a class."""
        self.show(kind)
        self.tab.mouse.click(220, 90 - 15, button="right")
        self.tab.get_by_text(entry, exact=True).click()

    def value(self, kind: str, widget: str):
        return self.run("return app.graph._nodes.find((own) => own.type === given[0]).widgets"
                        ".find((own) => own.name === given[1]).value", [kind, widget])

    @contextmanager
    def speaking(self, language: str) -> Iterator[None]:
        """The interface in a language; afterwards it is English again."""
        choose = ("const settings = app.ui.settings;"
                  "await (settings.setSettingValueAsync ?? settings.setSettingValue).call(settings, 'Comfy.Locale', given)")
        self.run(choose, language)
        self.tab.wait_for_timeout(4000)  # newer front ends fetch the nodes anew in that language
        try:
            yield
        finally:
            self.run(choose, "en")

    def queue(self) -> None:
        """Queues the graph and waits for the inspector."""
        self.run("await app.queuePrompt(0, 1)")
        self.tab.wait_for_function("() => document.querySelector('.dreammatcher.inspector').dataset.cell", timeout=240_000)

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        where = "upstream" if upstream_path() else "packaged"
        self.tab.screenshot(path=PICTURES / f"{where}_{self.renderer.replace(' ', '_')}_{name}.png")


@contextmanager
def opened(browser, server: str, renderer: str) -> Iterator[Page]:
    """A page of a server's, in one of its renderers."""
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    tab = context.new_page()
    page = Page(tab, renderer)
    open_host(tab, server)
    if upstream_path():
        page.run("await app.ui.settings.setSettingValueAsync?.('Comfy.VueNodes.Enabled', given)", renderer == "Nodes 2.0")
        tab.keyboard.press("Escape")
    yield page
    context.close()


def with_live_preview(steps: int) -> dict:
    """The example with Preview, with the live preview of Apply on."""
    graph = workflow("dreammatcher_04_toybox", steps=steps)
    apply = next(node for node in graph["nodes"] if node["type"] == "DreamMatcherApply")
    apply["widgets_values"][-1] = "trusted"
    return graph


def workflow(name: str, steps: int = 6) -> dict:
    """An example with few steps and a seed of its own: a server shows nothing of what it has made already."""
    seed = next(SEEDS)
    graph = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        if node["type"] in ("KSampler", "DreamMatcherInvert"):
            node["widgets_values"] = [steps if value == 50 else value for value in node["widgets_values"]]
        if node["type"] == "KSampler":
            node["widgets_values"][0] = seed
    return graph
