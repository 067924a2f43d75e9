"""The plan that the pictures in a run's folder were made by. A run with another plan must not go on in that folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..files import atomic_write
from .protocols import Case, Protocol
from .runner import CASES, Arm, Folder

PLAN = "plan.json"
#: what identifies pictures -> how it is called in messages
PARTS = {"graph": "workflow", "inputs": "places of reference, prompt and seed, or its output node", "identifier": "identifier",
         "protocol": "protocol or its data"}


def identity_of(arm: Arm, protocol: Protocol) -> dict[str, str]:
    """Everything that each picture of a run depends on.

    ``protocol`` is the whole one: limits, shards and classes choose among its cases.

    The graph counts without titles and without the values that each case sets. Photos count by their content, not by their path.
    """
    plain = {number: {name: value for name, value in node.items() if name != "_meta"}
             for number, node in arm.workflow.with_case("", "", 0).items()}
    subjects = [[subject.name, subject.class_word, subject.prompts, subject.first_seed,
                 [hashlib.sha256(path.read_bytes()).hexdigest() for path in subject.pictures]] for subject in protocol.subjects]
    return {"graph": _hash(plain), "inputs": _hash([arm.workflow.places, arm.workflow.output]), "identifier": arm.identifier,
            "protocol": _hash([protocol.samples, subjects])}


def begin(out: Path, plan: dict[str, Any], arm: Arm, protocol: Protocol, cases: list[Case]) -> Callable[[], str]:
    """Writes the plan of a run, or finds the same one there. Returns what to ask before every case: why none is to be made any
    more, or an empty string.

    ``protocol`` is the whole one, of which ``cases`` are chosen. Raises ValueError when the folder holds pictures of another
    plan, and when another process has begun a different one meanwhile.
    """
    identity = identity_of(arm, protocol)
    check_plan(out, identity, arm, cases)
    with atomic_write(out / PLAN) as partial_file:
        partial_file.write_text(json.dumps({**plan, "pictures": identity}, indent=1), encoding="utf-8")
    changed = partial(another_plan, out, identity)
    if reason := changed():
        raise ValueError(reason)
    return changed


def check_plan(out: Path, identity: dict[str, str], arm: Arm, cases: list[Case]) -> None:
    """Raises ValueError when a folder holds pictures of another plan than of this ``identity``, naming what differs.

    A folder of an earlier version, which did not write its identity down, goes on when the prompts and seeds of its cases and its
    workflow are this plan's.
    """
    if not any((out / CASES).glob("*.png")):
        return
    try:
        said = json.loads((out / PLAN).read_text(encoding="utf-8"))
        kept = said["pictures"] if "pictures" in said else _of_earlier(said, Folder(out), identity, arm, cases)
        different = [called for name, called in PARTS.items() if kept.get(name) != identity[name]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"out: {out} holds pictures, and it cannot be told of which plan ({PLAN}: {error}); give another "
                         "folder, or delete this one to begin anew") from error
    if different:
        raise ValueError(f"out: {out} holds pictures of another plan, whose {', and '.join(different)} differ from this one's; "
                         "give each plan a folder of its own, or delete this one to begin anew")


def another_plan(out: Path, identity: dict[str, str]) -> str:
    """A message when a folder's plan is no longer that of this ``identity``; otherwise an empty string."""
    if read_plan(out).get("pictures") == identity:
        return ""
    return f"out: another process has begun another plan in {out}; give each plan a folder of its own"


def read_plan(out: Path) -> dict[str, Any]:
    """Reads the plan of a run's folder. Raises ValueError for a folder that is no run."""
    try:
        return json.loads((out / PLAN).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{out} is no run: {PLAN} cannot be read ({error})") from error


def _of_earlier(said: dict[str, Any], folder: Folder, identity: dict[str, str], arm: Arm, cases: list[Case]) -> dict[str, str]:
    """The identity of a run whose plan holds the graph alone, as far as that and its cases tell."""
    kept = dict(identity)
    if said["workflow"] != arm.workflow.graph:
        kept["graph"] = "another"
    for case in cases:
        described = folder.described(case)
        if "prompt" not in described:
            continue  # it is not made yet
        if (described["plain_prompt"], described["seed"]) != (case.plain_text(), case.seed):
            kept["protocol"] = "another"
        elif described["prompt"] != case.text(arm.identifier):
            kept["identifier"] = "another"
    return kept


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
