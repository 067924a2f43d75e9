"""The archive that the registry ships: the tracked files that .comfyignore leaves in, and a host that runs from those alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

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
              "toybox/model.safetensors", "toybox/judge.safetensors", "subgraphs/DreamMatcher Steps.json", "docs/demo.png"}
    assert needed <= set(files)
    tops = {file.split("/")[0] for file in files}
    assert tops <= {"__init__.py", "CHANGELOG.md", "LICENSE", "README.md", "docs", "dreammatcher", "example_workflows", "locales",
                    "nodes", "pyproject.toml", "requirements.txt", "subgraphs", "toybox", "web"}, tops
    assert sum((ROOT / file).stat().st_size for file in files if (ROOT / file).exists()) < 32e6


@pytest.fixture(scope="module")
def pack(files) -> Path:
    """The archive's files as an installed pack."""
    folder = ROOT / "build" / "archive-tests"
    shutil.rmtree(folder, ignore_errors=True)
    pack_folder = folder / "custom_nodes" / "comfyui-dreammatcher"
    for file in files:
        (pack_folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, pack_folder / file)
    return pack_folder


def run(pack: Path, *command: str) -> str:
    """Output of a Python that sees the archive alone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *command], cwd=pack, capture_output=True, text=True, timeout=300,
                          env={**environment, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


#: imports every module that works without a host, and says which
IMPORTS = """
import importlib, pkgutil
for name in ("dreammatcher", "toybox"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        hosts = ("dreammatcher.host", "toybox.host", "toybox.transformer")
        if not module.name.startswith(hosts) and not module.name.endswith("__main__"):
            print(importlib.import_module(module.name).__file__)
"""


def test_every_module_of_the_archive_finds_what_it_imports(pack):
    loaded = run(pack, "-c", IMPORTS).splitlines()
    assert str(pack / "toybox" / "evaluation.py") in loaded and all(Path(file).is_relative_to(pack) for file in loaded)


def test_the_protocol_on_toybox_is_scored_from_the_archive_alone(pack, tmp_path):
    script = f"""
import json, sys
from pathlib import Path
from dreammatcher.cli.evaluate import Choice, benchmark, compare, reopened
from dreammatcher.evaluation.protocols import cases_of
from dreammatcher.evaluation.runner import Folder
out, plan = Path({str(tmp_path)!r}), {{"protocol": "toybox", "data": ".", "limit": 2, "workflow": {{}}}}
for case in cases_of(benchmark("toybox").protocol_in(out, out), limit=2):
    Folder(out).keep(case, {{}}, case.subject.pictures[0].read_bytes())
(out / "plan.json").write_text(json.dumps(plan))
compare([reopened(out, Choice(None, False))], out)
"""
    assert "subject error" in run(pack, "-c", script) and (tmp_path / "report.html").is_file()


def test_the_judge_of_the_archive_scores_pictures_without_what_only_developers_install(pack):
    script = """
import sys, torch
sys.modules.update(dict.fromkeys(("skimage", "matplotlib", "lpips")))
from toybox.scores import judged_pictures
from toybox.picture import reference_picture
picture = reference_picture(3, "cat", 2, "desert")[0][0].permute(2, 0, 1)
print(judged_pictures([picture], [picture], ["a photo of a cat in the desert"]))
"""
    assert run(pack, "-c", script).strip() == "{'subject error': [0.0], 'class': [1.0], 'scene': [1.0]}"


def test_the_commands_of_the_archive_say_how_they_are_used(pack):
    for command in ("evaluation", "training"):
        assert "usage:" in run(pack, "-m", f"dreammatcher.{command}", "--help")


def test_the_report_of_the_archive_names_the_host_and_its_packs_but_no_folder(pack):
    other = pack.parent / "neighbour.py"
    other.write_text("NODE_CLASS_MAPPINGS = {}\n")
    try:
        said = run(pack, "-m", "dreammatcher.cli.report")
        elsewhere = run(pack, "-m", "dreammatcher.cli.report", "--comfyui", str(pack / "docs"))
    finally:
        other.unlink()
    assert said.startswith("DreamMatcher Report\n- DreamMatcher: ") and "ComfyUI 0." in said
    assert said.rstrip().endswith("- other packs: neighbour.py")
    assert "- torch: " in elsewhere and elsewhere.rstrip().endswith("- host: --comfyui holds no ComfyUI")
    for private in (str(Path.home()), str(ROOT), str(pack)):
        assert private not in said + elsewhere


def test_a_server_runs_the_easy_example_from_the_archive_alone(pack):
    folder = pack.parents[1]
    prompt = easy()
    prompt["5"]["inputs"]["steps"] = 2
    with running(folder) as address:
        request = urllib.request.Request(f"{address}/prompt", json.dumps({"prompt": prompt}).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            number = json.load(answer)["prompt_id"]
        with urllib.request.urlopen(f"{address}/extensions/comfyui-dreammatcher/docs/DreamMatcherApply.md") as help_page:
            assert help_page.read().startswith(b"# Apply (DreamMatcher)")
        entry = wait_until(lambda: get(f"{address}/history/{number}").get(number), 240)
    assert entry["status"]["status_str"] == "success", entry["status"]
