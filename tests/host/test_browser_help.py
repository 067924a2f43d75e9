"""The help pages in the host's panel."""

from __future__ import annotations

import pytest
from browser_page import NEEDS_A_BROWSER

from harness.library import upstream_path

pytestmark = [NEEDS_A_BROWSER, pytest.mark.skipif(upstream_path() is None, reason="the packaged front end shows no help pages")]

SELECT = """
    app.graph.clear();
    const node = LiteGraph.createNode(given);
    app.graph.add(node);
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
"""
#: the heading of the page that is shown, and what of it ends beyond the panel's edge
BEYOND = """
    const page = document.querySelector(".node-help-content"), edge = page.getBoundingClientRect().right + 1;
    return [page.querySelector("h1")?.innerText, [...page.querySelectorAll("*")]
        .filter((part) => part.getBoundingClientRect().right > edge).map((part) => part.innerText.slice(0, 60))];
"""


def test_every_page_fits_the_panel(page, pack):
    names = pack.module("nodes").NODE_DISPLAY_NAME_MAPPINGS
    page.run(SELECT, next(iter(names)))
    page.tab.get_by_test_id("info-button").click()
    page.tab.locator(".node-help-content h1").wait_for()
    for kind, name in names.items():
        page.run(SELECT, kind)
        page.tab.locator(".node-help-content h1").get_by_text(name, exact=True).wait_for()
        assert page.run(BEYOND) == [name, []], kind
