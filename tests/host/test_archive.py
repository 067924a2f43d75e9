"""What the registry ships: every file that git tracks but .comfyignore names, and a host that runs from those alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request

import pytest

from harness.examples import easy
from harness.library import ROOT
from harness.serving import get, running, wait_until


def archived() -> list[str]:
    """The files of `comfy node pack`: what git tracks without what .comfyignore matches, by git's own rules."""
    left_out = set(listed("--ignored", "--exclude-from=.comfyignore"))
    return [file for file in listed() if file not in left_out]


def listed(*options: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", "--cached", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return [file for file in done.stdout.split("\0") if file]


@pytest.fixture(scope="module")
def files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    return archived()


def test_the_archive_has_what_the_pack_needs_and_nothing_else(files):
    needed = {"__init__.py", "README.md", "LICENSE", "pyproject.toml", "requirements.txt", "web/js/dreammatcher.js",
              "web/docs/DreamMatcherApply.md", "locales/en/nodeDefs.json", "example_workflows/dreammatcher_01_easy_toybox.json",
              "toybox/model.safetensors", "subgraphs/DreamMatcher.json", "docs/demo.png"}
    assert needed <= set(files)
    tops = {file.split("/")[0] for file in files}
    assert tops <= {"__init__.py", "CHANGELOG.md", "LICENSE", "README.md", "docs", "dreammatcher", "example_workflows", "locales",
                    "nodes", "pyproject.toml", "requirements.txt", "subgraphs", "toybox", "web"}, tops
    assert sum((ROOT / file).stat().st_size for file in files if (ROOT / file).exists()) < 32e6


def test_a_server_runs_the_easy_example_from_the_archive_alone(files):
    folder = ROOT / "build" / "archive-tests"
    shutil.rmtree(folder, ignore_errors=True)
    pack = folder / "custom_nodes" / "comfyui-dreammatcher"
    for file in files:
        (pack / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, pack / file)
    prompt = easy()
    prompt["5"]["inputs"]["steps"] = 2
    with running(folder) as address:
        request = urllib.request.Request(f"{address}/prompt", json.dumps({"prompt": prompt}).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            number = json.load(answer)["prompt_id"]
        with urllib.request.urlopen(f"{address}/extensions/comfyui-dreammatcher/docs/DreamMatcherApply.md") as help_page:
            assert help_page.read().startswith(b"# DreamMatcher Apply")
        entry = wait_until(lambda: get(f"{address}/history/{number}").get(number), 240)
    assert entry["status"]["status_str"] == "success", entry["status"]
