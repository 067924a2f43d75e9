"""The front end itself bypasses every node of ours: what it sends is what the tests of bypasses send."""

from __future__ import annotations

import json

import pytest
from bypassing import BYPASS, bypassed

from harness.browser import BROWSER, WANTED, browsing, open_host, run
from harness.library import ROOT
from harness.serving import running

pytestmark = pytest.mark.skipif(BROWSER is None or not WANTED, reason="no Chromium or Chrome here (CHROMIUM may name one), or "
                                "BROWSER=0")
EXAMPLES = ("01_easy_toybox", "04_toybox", "11_save_reference_toybox", "13_learn_toybox", "16_vico_toybox", "18_sefi_toybox")


@pytest.fixture(scope="module")
def tab():
    with running(ROOT / "build" / "browser-bypass-tests") as address, browsing() as browser:
        page = browser.new_page()
        open_host(page, address)
        yield page


def sent(tab, workflow: dict, number: int | None = None) -> dict:
    """The prompt of a workflow in which a node is bypassed, as the front end makes it: links and whole values alone."""
    script = """
        await app.loadGraphData(given[0]);
        if (given[1] !== null) app.graph.getNodeById(given[1]).mode = given[2];
        return (await app.graphToPrompt()).output;
    """
    prompt = run(tab, script, [workflow, number, BYPASS])
    return {key: {"class_type": entry["class_type"], "inputs": entry["inputs"]} for key, entry in prompt.items()}


def links(prompt: dict) -> dict:
    """The links of a graph. The front end writes the numbers of outputs as numbers or as texts."""
    return {(key, name): (str(value[0]), int(value[1])) for key, entry in prompt.items()
            for name, value in entry["inputs"].items() if isinstance(value, list) and len(value) == 2}


def in_the_old_order(workflow: dict) -> dict:
    """The workflow as it was saved when all inputs of a node that are optional now came before its others."""
    for node in workflow["nodes"]:
        slots = node.get("inputs") or []
        order = sorted(range(len(slots)), key=lambda slot: slots[slot]["name"], reverse=True)
        node["inputs"] = [slots[slot] for slot in order]
        for link in workflow["links"]:
            if link[3] == node["id"]:
                link[4] = order.index(link[4])
    return workflow


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_front_end_passes_a_bypassed_nodes_inputs_on_as_our_tests_do(tab, host, name):
    workflow = json.loads((ROOT / "example_workflows" / f"dreammatcher_{name}.json").read_text(encoding="utf-8"))
    whole = sent(tab, workflow)
    for node in workflow["nodes"]:
        if node["type"].startswith(("DreamMatcher", "Toybox")):
            wanted = bypassed(whole, str(node["id"]), host.nodes, host.upstream)
            assert links(sent(tab, workflow, node["id"])) == links(wanted), node["type"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_workflow_whose_sockets_are_in_another_order_gives_the_same_prompt(tab, name):
    path = ROOT / "example_workflows" / f"dreammatcher_{name}.json"
    text = path.read_text(encoding="utf-8")
    assert sent(tab, in_the_old_order(json.loads(text))) == sent(tab, json.loads(text))
