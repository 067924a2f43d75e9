"""Fixtures that several modules share; a module's own of the same name goes before."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from browser_page import RENDERERS, opened
from transformers_world import TRANSFORMERS, bench_of

from harness.browser import browsing
from harness.library import ROOT
from harness.serving import running


@pytest.fixture(params=list(TRANSFORMERS))
def family(request, pack):
    return bench_of(pack, request.param)


@pytest.fixture
def z(pack):
    return bench_of(pack, "Z-Image")


@pytest.fixture
def flux(pack):
    return bench_of(pack, "Flux.1")


@pytest.fixture
def no_graphs():
    """Nothing is compiled yet, and blocks that each have a width of their own do not use up what is kept of a class."""
    import torch._dynamo.config as config

    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    torch.compiler.reset()
    with config.patch({limit: 64}):
        yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def server(request):
    """Address of a host that serves one module's tests."""
    with running(ROOT / "build" / request.path.stem.replace("_", "-")) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with browsing() as launched:
        yield launched


@pytest.fixture(scope="module")
def pages(server, browser):
    """Gives the page of a renderer, which is opened once: a front end takes longer to load than most tests."""
    with ExitStack() as stack:
        known = {}

        def page_in(renderer):
            if renderer not in known:
                known[renderer] = stack.enter_context(opened(browser, server, renderer))
            return known[renderer]

        yield page_in


@pytest.fixture(params=RENDERERS)
def page(pages, request):
    """An empty page of a renderer. Errors of ours in its console fail the test."""
    tab = pages(request.param)
    tab.clear()
    yield tab
    assert not tab.errors, tab.errors


@pytest.fixture
def small_set(host):
    """A training set of two small pictures of a robot."""
    draw = host.nodes["ToyboxReference"]().draw
    pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])[:, ::2, ::2]
    return host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 64, pictures)["result"][0]
