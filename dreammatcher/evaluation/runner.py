"""Makes every picture of a protocol by a workflow.

A finished case is a file: a killed run goes on where it was, and nothing is done twice, however many machines share the work.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from ..files import atomic_write
from .protocols import Case
from .server import Refused, Server
from .workflow import Workflow

CASES = "cases"


@dataclass(frozen=True)
class Folder:
    """The folder of a run: a picture and a description of each case."""

    root: Path

    def picture(self, case: Case) -> Path:
        return self.root / CASES / f"{case.key}.png"

    def description(self, case: Case) -> Path:
        return self.root / CASES / f"{case.key}.json"

    def done(self, case: Case) -> bool:
        """True if the case has its picture. A case that failed is tried again."""
        return self.picture(case).is_file() and "error" not in self.described(case)

    def described(self, case: Case) -> dict:
        try:
            return json.loads(self.description(case).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {"error": "not made yet"}

    def keep(self, case: Case, said: dict, picture: bytes | None) -> None:
        """Writes the picture first, whole or not at all, then its description."""
        if picture is not None:
            with atomic_write(self.picture(case)) as partial:
                partial.write_bytes(picture)
        with atomic_write(self.description(case)) as partial:
            partial.write_text(json.dumps(said, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Arm:
    """One arm of an evaluation: a workflow, and the word that stands for the subject in prompts."""

    workflow: Workflow
    identifier: str


def make(case: Case, arm: Arm, server: Server, folder: Folder) -> str:
    """Makes and keeps one case; returns what went wrong, or an empty string."""
    begun = time.perf_counter()
    prompt = case.text(arm.identifier)
    said = {"subject": case.subject.name, "prompt": prompt, "plain_prompt": case.plain_text(),
            "seed": case.seed}
    reference = case.subject.pictures[0]
    try:
        name = server.upload(f"{case.subject.name}_{reference.name}", reference.read_bytes())
        pictures = server.pictures(arm.workflow.with_case(name, prompt, case.seed), arm.workflow.output)
    except (Refused, OSError, KeyError, ValueError) as error:
        folder.keep(case, {**said, "error": str(error)}, None)
        return str(error)
    folder.keep(case, {**said, "seconds": round(time.perf_counter() - begun, 3)}, pictures[0])
    return ""


def run(cases: Iterable[Case], arm: Arm, servers: list[Server], folder: Folder,
        tell: Callable[[str], None], changed: Callable[[], str] = lambda: "") -> list[tuple[str, str]]:
    """Makes what is not there yet, on all servers at once; returns the cases that failed, each with its error.

    ``changed`` is asked before every case, and gives the reason why none is to be made any more, or an empty string.
    """
    waiting: SimpleQueue = SimpleQueue()
    missing = [case for case in cases if not folder.done(case)]
    for case in missing:
        waiting.put(case)
    failed: list[tuple[str, str]] = []
    finished, lock, begun = [0], threading.Lock(), time.monotonic()

    def work(server: Server) -> None:
        while True:
            try:
                case = waiting.get_nowait()
            except Empty:
                return
            error = changed() or make(case, arm, server, folder)
            with lock:
                finished[0] += 1
                if error:
                    failed.append((case.key, error))
                left = (time.monotonic() - begun) / finished[0] * (len(missing) - finished[0])
                outcome = f" FAILED: {error}" if error else ""
                tell(f"{finished[0]} of {len(missing)}: {case.key}{outcome}, about {left:.0f} s left")

    threads = [threading.Thread(target=work, args=(server,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed
