"""A real server in a process of its own, on either host."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .boot import install_pack
from .library import upstream_path


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of a server with our pack, whose files are in ``folder``."""
    port = free_port()
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
        wait_until(lambda: answers(address, process, folder), 300)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address: str, process: subprocess.Popen, folder: Path) -> bool:
    assert process.poll() is None, f"the server ended; see {folder / 'server.log'}"
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
