"""How our nodes are found, how they begin, and in which language their widgets speak."""

from __future__ import annotations

import pytest
from browser_page import NEEDS_A_BROWSER, Page, workflow

from harness.library import upstream_path
from harness.serving import get

pytestmark = NEEDS_A_BROWSER


def offered(page: Page, typed: str) -> list[str]:
    """The names that the front end's search offers: its box opens by a double click on the empty canvas."""
    box = page.tab.get_by_role("combobox").filter(visible=True)
    for _ in range(10):  # a page that has just been opened takes no click yet
        page.tab.mouse.dblclick(700, 500)
        page.tab.wait_for_timeout(2000)
        if box.count():
            break
    box.first.fill(typed)
    page.tab.wait_for_timeout(1500)
    page.picture("search_" + typed.replace(" ", "_"))
    found = [text.splitlines()[0] for text in page.tab.get_by_role("option").all_inner_texts()]
    page.tab.keyboard.press("Escape")
    page.tab.wait_for_timeout(500)
    return found


@pytest.mark.skipif(upstream_path() is None, reason="the packaged front end searches names only")
def test_the_search_offers_our_nodes_for_what_people_type(page):
    page.run("app.graph.clear()")
    for typed, wanted in (("ipadapter", "Easy (DreamMatcher)"), ("same character", "Easy (DreamMatcher)"),
                          ("lora training", "DreamBooth (DreamMatcher)"),
                          ("textual inversion", "Textual Inversion (DreamMatcher)"),
                          ("DreamMatcher Apply", "Apply (DreamMatcher)")):
        names = offered(page, typed)
        assert wanted in names, (typed, names)


def test_the_menu_of_our_nodes_says_where_to_start(page):
    page.load(workflow("dreammatcher_01_easy_toybox"))
    page.choose("DreamMatcherEasy", "DreamMatcher: start here")
    note = page.tab.locator(".dreammatcher-start")
    note.wait_for(state="visible")
    page.picture("start_here")
    assert "One photo and your checkpoint: Easy (DreamMatcher)." in note.inner_text() and note.locator("li").count() == 4


@pytest.mark.parametrize("language, wanted", [("zh", "运行工作流后，匹配会显示在这里。"),
                                              ("ja", "グラフを実行すると、ここにマッチングが表示されます。"),
                                              ("ko", "그래프를 실행하면 여기에 매칭이 나타납니다.")])
def test_the_inspector_speaks_the_interfaces_language(page, language, wanted):
    with page.speaking(language):
        page.load(workflow("dreammatcher_04_toybox"))
        page.show("DreamMatcherPreview")
        page.tab.locator(".dreammatcher.inspector").get_by_text(wanted).wait_for(state="visible")
        page.picture(f"inspector_{language}")


@pytest.mark.skipif(upstream_path() is None, reason="the packaged host lists no templates")
def test_every_template_of_ours_has_the_picture_that_the_host_shows_beside_its_name(page, server):
    """This host takes a template's title from its file's name and its picture from a jpg of that name; it reads no index."""
    listed = get(f"{server}/workflow_templates")
    pack, = (name for name in listed if name.endswith("comfyui-dreammatcher"))
    assert len(listed[pack]) >= 21 and all(name.startswith("dreammatcher_") for name in listed[pack])
    sizes = page.run("""return Promise.all(given.map(async (address) => {
        const image = new Image();
        image.src = address;
        await image.decode();
        return image.naturalHeight;
    }))""", [f"{server}/api/workflow_templates/{pack}/{name}.jpg" for name in listed[pack]])
    assert all(size >= 200 for size in sizes)
