"""The real server: our nodes in /object_info, our example through /prompt."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from harness.boot import install_pack
from harness.examples import easy
from harness.library import ROOT, upstream_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    folder, port = ROOT / "build" / "server-tests", free_port()
    install_pack(folder)
    upstream = upstream_path()
    if upstream:
        command = [sys.executable, str(upstream / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port),
                   "--base-directory", str(folder), "--disable-auto-launch", "--disable-api-nodes"]
    else:
        command = [sys.executable, "-m", "comfy.cmd.main", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--cwd",
                   str(folder), "--disable-known-models"]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(address, process), 120)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def answers(address: str, process: subprocess.Popen) -> bool:
    assert process.poll() is None, f"the server ended; see {ROOT / 'build' / 'server-tests' / 'server.log'}"
    try:
        get(f"{address}/queue")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def wait_until(condition, seconds: float):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.5)
    raise TimeoutError(f"nothing after {seconds} s")


def get(address: str):
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.load(answer)


def test_the_server_offers_our_nodes_with_their_words(server):
    offered = get(f"{server}/object_info")
    ours = [name for name in offered if name.startswith(("DreamMatcher", "Toybox"))]
    assert len(ours) == 13
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
