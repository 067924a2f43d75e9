"""The real server: our nodes in /object_info, our example through /prompt."""

from __future__ import annotations

import json
import platform
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from bypassing import bypassed, switched

from dreammatcher.installation import version
from harness.examples import easy
from harness.library import ROOT
from harness.serving import get, running, wait_until


@pytest.fixture(scope="module")
def server():
    packs = ROOT / "build" / "server-tests" / "custom_nodes"
    for name in ("neighbour_pack", "sleeping_pack.disabled"):
        (packs / name).mkdir(parents=True, exist_ok=True)
        (packs / name / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (packs / "neighbour_pack" / "pyproject.toml").write_text('[project]\nname = "neighbour"\nversion = "1.2.3"\n')
    with running(ROOT / "build" / "server-tests") as address:
        yield address


def test_the_server_offers_our_nodes_with_their_words(server):
    offered = get(f"{server}/object_info")
    ours = [name for name in offered if name.startswith(("DreamMatcher", "Toybox"))]
    assert len(ours) == 41
    apply = offered["DreamMatcherApply"]
    assert apply["category"] == "DreamMatcher" and "appearance" in apply["description"]
    assert apply["input"]["required"]["strength"][1]["default"] == 1.0


def test_the_server_gives_a_report_for_bug_reports_that_names_no_folder_and_no_user(host, server):
    """A pack beside ours is listed with its version; one that is switched off is not."""
    with urllib.request.urlopen(f"{server}/dreammatcher/report", timeout=30) as answer:
        assert answer.headers.get_content_type() == "text/plain"
        text = answer.read().decode()
    said = dict(line[2:].split(": ", 1) for line in text.splitlines()[1:])
    assert said["DreamMatcher"] == version() and said["torch"].startswith(torch.__version__)
    assert said["host"].startswith("ComfyUI 0." if host.upstream else "packaged ComfyUI 0.")
    assert said["device"].startswith("cpu, ") and said["loaded models"] == "none"
    assert "neighbour_pack 1.2.3" in said["other packs"] and "sleeping" not in said["other packs"]
    for private in (str(Path.home()), str(ROOT), str(Path.cwd()), platform.node()):
        assert private not in text


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
    with urllib.request.urlopen(f"{server}/dreammatcher/report", timeout=30) as answer:
        loaded = re.search("- loaded models: (.*)", answer.read().decode())[1]
    assert "ToyboxFamily (UNetModel channels=4x" in loaded and "prediction=EPS" in loaded


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
    assert "Easy (DreamMatcher) is bypassed, and nothing comes to positive of KSampler, negative of KSampler" in log
    assert "set its strength to 0 instead" in log and "on_prompt_handler processing" not in log
