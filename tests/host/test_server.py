"""The real server: our nodes in /object_info, our example through /prompt."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from bypassing import bypassed, switched

from harness.examples import easy
from harness.library import ROOT
from harness.serving import get, running, wait_until


@pytest.fixture(scope="module")
def server():
    with running(ROOT / "build" / "server-tests") as address:
        yield address


def test_the_server_offers_our_nodes_with_their_words(server):
    offered = get(f"{server}/object_info")
    ours = [name for name in offered if name.startswith(("DreamMatcher", "Toybox"))]
    assert len(ours) == 37
    apply = offered["DreamMatcherApply"]
    assert apply["category"] == "DreamMatcher" and "appearance" in apply["description"]
    assert apply["input"]["required"]["strength"][1]["default"] == 1.0


def test_the_server_runs_the_easy_example(server):
    prompt = easy()
    prompt["5"]["inputs"]["steps"] = 4
    body = json.dumps({"prompt": prompt, "client_id": "test"}).encode()
    request = urllib.request.Request(f"{server}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        number = json.load(answer)["prompt_id"]
    entry = wait_until(lambda: get(f"{server}/history/{number}").get(number), 240)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert entry["outputs"]["7"]["images"] and entry["outputs"]["8"]["images"]


def test_the_server_says_what_to_do_instead_of_bypassing_easy(host, server):
    """Posts what the front end posts after Ctrl+B, with its workflow."""
    workflow = json.loads((ROOT / "example_workflows" / "dreammatcher_01_easy_toybox.json").read_text(encoding="utf-8"))
    prompt = bypassed(easy(), "3", host.nodes, host.upstream)
    sent = {"prompt": prompt, "client_id": "test", "extra_data": {"extra_pnginfo": {"workflow": switched(workflow, "3")}}}
    request = urllib.request.Request(f"{server}/prompt", json.dumps(sent).encode(), {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 400 and "positive" in refused.value.read().decode()
    log = wait_until(lambda: (ROOT / "build" / "server-tests" / "server.log").read_text(encoding="utf-8"), 10)
    assert "DreamMatcher (Easy) is bypassed, and nothing comes to positive of KSampler, negative of KSampler" in log
    assert "set its strength to 0 instead" in log and "on_prompt_handler processing" not in log
