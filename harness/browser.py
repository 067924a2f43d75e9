"""A real browser for what people see: for the tests of the front end and for the pictures of the example workflows.

``python -m harness.browser`` looks for one. Root on a Debian without any gets Debian's Chromium, unless BROWSER=0 says that none
is wanted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .library import upstream_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
#: the browser's program, or None: CHROMIUM names one, or it is on the path
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
WANTED = os.environ.get("BROWSER") != "0"
#: newer front ends keep the application in the window, and their module of that name must not be loaded before it is there
APP = "window.comfyAPI?.app?.app" if upstream_path() else "(await import('/scripts/app.js')).app"


@contextmanager
def browsing() -> Iterator[Browser]:
    """A running browser of playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield launched
        finally:
            launched.close()


def open_host(tab, address: str) -> None:
    """Opens ComfyUI in a tab and waits until it is ready."""
    tab.set_default_navigation_timeout(240_000)  # a front end is large, and machines are slow
    tab.goto(address)
    ready = "app?.vueAppReady && app.canvas?.graph" if upstream_path() else "app?.graph && app.canvas"
    ready += " && ['Note', 'DreamMatcherEasy'].every((name) => window.LiteGraph?.registered_node_types[name])"
    for _ in range(240):
        if tab.evaluate(f"async () => {{ const app = {APP}; return Boolean({ready}) }}"):
            break
        tab.wait_for_timeout(500)
    tab.wait_for_timeout(1500)
    tab.keyboard.press("Escape")  # a newcomer's list of templates


def run(tab, script: str, argument=None):
    """``script`` in the page, with ``app`` and ``given``."""
    return tab.evaluate(f"async (given) => {{ const app = {APP}; {script} }}", argument)


#: the whole graph in view
FIT = """
    const boxes = app.graph._nodes.map((node) => node.getBounding());
    const left = Math.min(...boxes.map((box) => box[0])), top = Math.min(...boxes.map((box) => box[1]));
    const right = Math.max(...boxes.map((box) => box[0] + box[2])), bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
    const scale = Math.min(innerWidth / (right - left + 80), innerHeight / (bottom - top + 80));
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [40 - left, 40 - top];
    app.canvas.setDirty(true, true);
"""
#: the same, ``given`` is its workflow
LOAD_AND_FIT = "await app.loadGraphData(given);" + FIT


def look_for_one() -> None:
    if not WANTED:
        print("BROWSER=0: the tests of the front end are skipped")
        return
    if BROWSER:
        return
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing Debian's chromium by apt-get, for the tests of the front end (BROWSER=0 leaves it out)", flush=True)
        quiet = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
        done = [subprocess.run([*quiet, *what], stdout=subprocess.DEVNULL).returncode for what in (
            ["update"], ["install", "-y", "--no-install-recommends", "chromium"])]
        if not any(done):
            return
    if os.environ.get("CI"):
        raise SystemExit("no Chromium or Chrome here, and CI must run the tests of the front end (BROWSER=0 leaves them out)")
    print("no Chromium or Chrome here: the tests of the front end are skipped")


if __name__ == "__main__":
    look_for_one()
