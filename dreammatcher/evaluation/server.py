"""A running ComfyUI, over its own HTTP interface, and one that is started for a process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..devices import accelerator, device_of_process


class Refused(Exception):
    """The server did not make the pictures; the text says why."""


@dataclass(frozen=True)
class Server:
    """A server by its address, as http://127.0.0.1:8188."""

    url: str
    wait: float = 0.2  # seconds between two looks

    def alive(self) -> bool:
        try:
            self._get("/system_stats", timeout=5)
        except OSError:
            return False
        return True

    def upload(self, name: str, content: bytes) -> str:
        """Puts a picture into the input folder; returns the name that LoadImage takes."""
        mark = uuid.uuid4().hex
        parts = [(b'form-data; name="overwrite"', b"true"), (b'form-data; name="subfolder"', b"dreammatcher_evaluation"),
                 (f'form-data; name="image"; filename="{name}"'.encode(), content)]
        body = b"".join(b"--%b\r\nContent-Disposition: %b\r\n\r\n%b\r\n" % (mark.encode(), head, part) for head, part in parts)
        body += b"--%b--\r\n" % mark.encode()
        said = self._post("/upload/image", body, f"multipart/form-data; boundary={mark}")
        return "/".join(part for part in (said.get("subfolder"), said["name"]) if part)

    def pictures(self, graph: dict[str, Any], node: str, timeout: float = 3600) -> list[bytes]:
        """Runs a graph and returns the files of one of its nodes. Raises Refused with what the server says."""
        number = self._post("/prompt", json.dumps({"prompt": graph, "client_id": uuid.uuid4().hex}).encode())["prompt_id"]
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = json.loads(self._get(f"/history/{number}")).get(number)
            if entry is not None and (entry.get("status") or {}).get("completed") is not None:
                return self._results(entry, node)
            time.sleep(self.wait)
        raise Refused(f"{self.url} did not finish within {timeout:.0f} s")

    def _results(self, entry: dict[str, Any], node: str) -> list[bytes]:
        status = entry["status"]
        if not status["completed"] or status.get("status_str") == "error":
            errors = [data for event, data in status.get("messages", []) if event == "execution_error"]
            said = f"{errors[0]['node_type']}: {errors[0]['exception_message'].strip()}" if errors else "it was interrupted"
            raise Refused(said)
        images = entry["outputs"].get(node, {}).get("images", [])
        if not images:
            raise Refused(f"node {node} made no picture")
        return [self._get("/view?" + urllib.parse.urlencode({key: one.get(key, "") for key in ("filename", "subfolder", "type")}))
                for one in images]

    def _get(self, path: str, timeout: float = 60) -> bytes:
        with urllib.request.urlopen(self.url.rstrip("/") + path, timeout=timeout) as answer:
            return answer.read()

    def _post(self, path: str, body: bytes, kind: str = "application/json") -> dict[str, Any]:
        request = urllib.request.Request(self.url.rstrip("/") + path, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise Refused(f"{self.url}{path} answers {error.code}: {_reason(error.read())}") from error


def _reason(body: bytes) -> str:
    """The text of a refusal: the host's message, and each node's."""
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
        error = said.get("error")
        parts = [str(error.get("message", "")) if isinstance(error, dict) else str(error)]
        for number, one in (said.get("node_errors") or {}).items():
            parts += [f"node {number} ({one.get('class_type')}): {wrong.get('message')} {wrong.get('details')}"
                      for wrong in one["errors"]]
        return "; ".join(part for part in parts if part)[:600]
    except (ValueError, AttributeError, KeyError, TypeError):
        return text[:300]


@contextlib.contextmanager
def serving(urls: list[str], comfyui: Path | None) -> Iterator[list[Server]]:
    """The servers that are given, or one of the folder ``comfyui`` that runs as long as this process.

    Raises ValueError for one that does not answer, and where there is neither.
    """
    if urls:
        servers = [Server(url) for url in urls]
        silent = [server.url for server in servers if not server.alive()]
        if silent:
            raise ValueError(f"servers: {silent[0]} does not answer; start ComfyUI there, or take it from the list")
        yield servers
        return
    if comfyui is None:
        raise ValueError("servers: none is given; name running ones with --servers, or a ComfyUI to start with --comfyui")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **(device_of_process(os.environ) if torch.cuda.is_available() else {})}
    flags = [] if accelerator() else ["--cpu"]
    process = subprocess.Popen([sys.executable, "main.py", "--port", str(port), *flags], cwd=comfyui, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(f"http://127.0.0.1:{port}")
    try:
        while not server.alive():
            if process.poll() is not None:
                raise ValueError(f"comfyui: {comfyui} does not start; start it by hand and give --servers")
            time.sleep(0.5)
        yield [server]
    finally:
        process.terminate()
        process.wait()
