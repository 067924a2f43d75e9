"""Bypass (Ctrl+B) as the front ends do it: what they send when a node is switched to mode 4."""

from __future__ import annotations

import copy
from typing import Any

from harness.workflow import inputs_of, is_widget

BYPASS = 4


def bypassed(prompt: dict[str, Any], number: str, nodes: dict[str, type], widgets_pass: bool) -> dict[str, Any]:
    """An API prompt without node ``number``: what its outputs fed is fed by the source of its first input of that type.

    The input in the output's own slot is preferred. Where there is no such input, or nothing is connected to it, what followed is
    left unconnected. In newer front ends (``widgets_pass``) widgets are inputs as well, and pass on their value.
    """
    left = copy.deepcopy(prompt)
    entry = left.pop(number)
    kind = nodes[entry["class_type"]]
    declared = [(name, type_of(declaration)) for name, declaration in inputs_of(kind).items()
                if widgets_pass or not is_widget(declaration)]
    for other in left.values():
        wanted = {name: type_of(declaration) for name, declaration in inputs_of(nodes[other["class_type"]]).items()}
        for name, value in list(other["inputs"].items()):
            if not isinstance(value, list) or value[0] != number:
                continue
            passed = _passed(declared, value[1], wanted[name])
            source = None if passed is None else entry["inputs"].get(passed)
            if source is None:
                del other["inputs"][name]
            else:
                other["inputs"][name] = source
    return left


def type_of(declaration: tuple) -> str:
    return "COMBO" if isinstance(declaration[0], list) else str(declaration[0])


def _passed(declared: list[tuple[str, str]], slot: int, wanted: str) -> str | None:
    same = declared[slot:slot + 1] + declared
    return next((name for name, kind in same if kind == wanted), None)


def switched(workflow: dict[str, Any], number: str) -> dict[str, Any]:
    """The workflow in which that node is bypassed."""
    changed = copy.deepcopy(workflow)
    for node in changed["nodes"]:
        if str(node["id"]) == number:
            node["mode"] = BYPASS
    return changed
