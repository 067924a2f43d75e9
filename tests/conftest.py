"""One real host for all tests that need one, and the small models that run in it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for small_training.py and small_photos.py
sys.path.insert(0, str(Path(__file__).parent / "host"))  # for world.py, the small models

from world import robots

from harness.boot import CACHES, Host
from harness.library import ROOT

#: of pytest-xdist; each worker has a host folder and a core of its own
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
#: bytes of a worker above which it lets go of what a test left, and by which it has to grow after that to do so again
MUCH, MORE = 1_800_000_000, 300_000_000
if WORKER != "alone":
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def host() -> Host:
    booted = Host(ROOT / "build" / f"host-tests-{WORKER}")
    torch.set_grad_enabled(False)
    return booted


@pytest.fixture(scope="module", autouse=True)
def nothing_outlives_its_file():
    """Hosts keep every model that ever ran until memory is short; a suite of small models would fill gigabytes with them."""
    yield
    let_go()


@pytest.fixture(scope="session")
def most_held() -> list[int]:
    """Bytes above which a test's leavings are freed. What stays after that is in use: to look for it again takes a second."""
    return [MUCH]


@pytest.fixture(autouse=True)
def little_is_held(most_held):
    """Frees at once what a test left behind if it is large."""
    yield
    if psutil.Process().memory_info().rss > most_held[0]:
        let_go()
        most_held[0] = max(MUCH, psutil.Process().memory_info().rss + MORE)


def let_go() -> None:
    """Unloads the host's models and gives memory back to the system, whatever the allocator's thresholds are."""
    management = sys.modules.get("comfy.model_management")
    if management is not None:
        management.unload_all_models()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def pack(host):
    return host.pack()


@pytest.fixture(scope="session")
def toybox(host):
    """MODEL, CLIP and VAE that ship with the pack."""
    with torch.inference_mode():
        return host.nodes["ToyboxLoader"]().load()


@pytest.fixture(params=CACHES)
def executor(host, request):
    """A prompt executor with each of the host's caches in turn."""
    if request.param not in host.caches():
        pytest.skip(f"this host has no cache {request.param!r}")
    return host.executor(request.param)


@pytest.fixture
def fresh(host):
    """MODEL, CLIP and VAE of Toybox that no other test has."""
    return host.nodes["ToyboxLoader"]().load()


@pytest.fixture(scope="module")
def pictures(host):
    """Two of Toybox's robots."""
    return robots(host, 2)


@pytest.fixture
def make_set(host, pictures):
    """A training set of the pictures; the node's inputs may be others."""
    def made(**changes):
        chosen = dict(images=pictures, identifier="sks", class_word="robot", template="photo", resolution=128)
        return host.nodes["DreamMatcherTrainingSet"]().make(**{**chosen, **changes})["result"][0]
    return made


@pytest.fixture
def training_set(make_set):
    return make_set()


@pytest.fixture
def stopped_at(monkeypatch):
    """The user stops what runs inside when the host's progress bar stands at some of some steps."""
    @contextmanager
    def stops(step: int, steps: int):
        import comfy.utils

        update = comfy.utils.ProgressBar.update_absolute

        def interrupt(bar, value, total=None, *rest):
            if (value, total) == (step, steps):
                raise KeyboardInterrupt
            update(bar, value, total, *rest)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(comfy.utils.ProgressBar, "update_absolute", interrupt)
            yield
    return stops


@pytest.fixture
def gradients():
    """Hosts switch them off for the process."""
    with torch.enable_grad():
        yield


@pytest.fixture
def as_in_a_graph():
    """The host runs graphs in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def model_folder(host):
    """A kind of models -> a folder that the host searches for them."""
    def folder_of_kind(kind: str) -> Path:
        folder = host.folder / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        host.folder_paths.add_model_folder_path(kind, str(folder))
        return folder
    return folder_of_kind
