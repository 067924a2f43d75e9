"""The files around the code: pages name what is there, versions agree, the example of the documents runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dreammatcher.installation import packs, version
from harness.library import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "toybox" / "README.md"])
PATH = re.compile(r"(?<![\w/.:~-])((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|toml|yml))(?![\w/])")
MODULE = re.compile(r"-m ((?:dreammatcher|harness|benchmarks|toybox|docs)[\w.]*)")


def named(text: str) -> set[str]:
    """Paths in a page that can be the repository's: those that begin with a folder of it, and files of Python."""
    tops = {path.name for where in (ROOT, ROOT / "dreammatcher") for path in where.iterdir() if path.is_dir()} - {"build"}
    found = {path for path in PATH.findall(text) if path.split("/")[0] in tops or path.endswith(".py")}
    return {path for path in found if "NAME" not in path}  # of a method or family that is yet to be written


def there(path: str, page: Path) -> bool:
    """From the root, from the page's folder, or from the package; a file of Python by its name alone too."""
    return any((folder / path).exists() for folder in (ROOT, page.parent, ROOT / "dreammatcher")) or (
        "/" not in path and any(ROOT.glob(f"tests/**/{path}")))


def test_the_reader_of_paths_sees_them_and_what_is_missing(tmp_path):
    text = "see `dreammatcher/host/sampling/rows.py`, (docs/nowhere.md), host/gone.py and models/evaluation; docs/NAME.md"
    assert named(text) == {"dreammatcher/host/sampling/rows.py", "docs/nowhere.md", "host/gone.py"}
    assert [path for path in sorted(named(text)) if there(path, tmp_path / "page.md")] == ["dreammatcher/host/sampling/rows.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_and_command_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    assert not [path for path in sorted(named(text)) if not there(path, page)]
    modules = {name.rstrip(".") for name in MODULE.findall(text)}
    assert not [name for name in sorted(modules) if not any(
        (ROOT / f"{name.replace('.', '/')}{end}").is_file() for end in (".py", "/__main__.py"))]


def test_the_page_on_architecture_is_one_page_and_names_most_rooms():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    rooms = [path.name for path in (ROOT / "dreammatcher").iterdir() if (path / "__init__.py").is_file()]
    assert not [room for room in rooms if room not in text]


def test_changelog_and_pyproject_agree_on_the_version_which_stands_nowhere_else():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [heading for heading in headings if "unreleased" not in heading.lower() and "not released" not in heading]
    assert headings.count("Unreleased") <= 1 and "Unreleased" not in headings[1:]
    assert version() == released[0] and re.fullmatch(r"\d+\.\d+\.\d+", version())
    listed = subprocess.run(["git", "ls-files", "*.py", "*.js", "*.md", "*.json"], cwd=ROOT, capture_output=True, text=True)
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in listed.stdout.split() if (ROOT / name).is_file()}
    assert not [name for name, text in texts.items() if name != "CHANGELOG.md" and f'"{version()}"' in text]


def test_the_gallery_shows_ten_graphs_with_the_picture_that_is_made_of_each_and_names_the_others():
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    graphs, shown = (re.findall(rf"\(\.\./example_workflows/(\w+)\.{end}\)", text) for end in ("json", "jpg"))
    assert graphs == shown and len(set(graphs)) == 10
    assert all((ROOT / "example_workflows" / f"{name}.{end}").is_file() for name in graphs for end in ("json", "jpg"))
    known = [path.stem for path in (ROOT / "example_workflows").glob("*.json")]
    assert [name for name in known if f"`{name.removeprefix('dreammatcher_')}`" not in text and name not in graphs] == []
    assert "docs/gallery.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_packs_are_listed_by_folder_or_file_without_those_that_are_off(tmp_path):
    for name in ("B_pack", "a_pack", "off.disabled", "__pycache__", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "a_pack" / "pyproject.toml").write_text('[project]\nname = "a"\nversion = "3.1"\n')
    for name in ("single.py", "notes.txt", "example_node.py.example"):
        (tmp_path / name).write_text("")
    assert packs([tmp_path, tmp_path / "missing"]) == ["a_pack 3.1", "B_pack", "single.py"]


def test_the_issue_form_asks_for_the_report_and_publishing_uses_the_registry_s_action():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    asked = {part["id"]: part for part in form["body"]}
    assert "dreammatcher.cli.report" in asked["report"]["attributes"]["description"]
    assert asked["report"]["validations"]["required"] and asked["workflow"]["validations"]["required"]
    publish = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    used = [step["uses"].split("@")[0] for step in publish["jobs"]["publish"]["steps"]]
    assert used == ["actions/checkout", "Comfy-Org/publish-node-action"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ["make lint"]


def test_the_example_of_the_documents_carries_a_picture_back_to_where_it_was(tmp_path):
    """A picture in coarse random colours, and the same moved by 16 pixels: what both show comes from the other, exactly."""
    colours = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    whole = colours.repeat(4, 0).repeat(4, 1)
    reference, target = whole[:128, :128], whole[16:144, 16:144].copy()
    wanted = target.copy()
    target[40:72, 40:72] = 64 + target[40:72, 40:72] // 2  # a pale patch
    for name, pixels in (("reference", reference), ("target", target)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    done = subprocess.run([sys.executable, "-m", "docs.match_two_pictures", *(str(tmp_path / f"{name}.png") for name in (
        "reference", "target", "out"))], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    out = np.array(Image.open(tmp_path / "out.png")).astype(int)
    patch = (slice(44, 68), slice(44, 68))
    assert np.abs(out[patch] - wanted[patch]).mean() < 0.2 * np.abs(target[patch].astype(int) - wanted[patch]).mean()
    assert np.abs(out[8:104, 8:104] - wanted[8:104, 8:104]).mean() < 3
    lines = (ROOT / "docs" / "match_two_pictures.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
