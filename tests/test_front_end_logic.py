"""The front end's logic in Node's own test runner; what needs a browser is in tests/host/test_browser.py."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from harness.library import ROOT

NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no node here")
@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "tests" / "web").glob("*.test.mjs")))
def test_the_front_ends_logic(file):
    done = subprocess.run([NODE, "--test", str(ROOT / "tests" / "web" / file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
