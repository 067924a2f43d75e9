"""Fixtures of the tests that drive the front end in a browser; a module's own of the same name goes before."""

from __future__ import annotations

import pytest
from browser_page import RENDERERS, opened

from harness.browser import browsing
from harness.library import ROOT
from harness.serving import running


@pytest.fixture(scope="module")
def server(request):
    """Address of a host that serves one module's tests."""
    with running(ROOT / "build" / request.path.stem.replace("_", "-")) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with browsing() as launched:
        yield launched


@pytest.fixture(params=RENDERERS)
def page(server, browser, request):
    with opened(browser, server, request.param) as tab:
        yield tab
