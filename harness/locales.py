"""``python -m harness.locales``: writes locales/en/nodeDefs.json, the nodes' texts as the front end's translator reads them.

The other languages are kept by hand; ``tests/test_help.py`` compares them with these texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .boot import Host
from .library import ROOT
from .workflow import inputs_of, outputs_of

LOCALES = ROOT / "locales"


def file_of(language: str) -> Path:
    return LOCALES / language / "nodeDefs.json"


def texts(nodes: Mapping[str, type[Any]], names: Mapping[str, str]) -> dict[str, dict]:
    """Shown name, description, and names and tooltips of inputs and outputs, by node, as a locale's nodeDefs.json has them."""
    return {name: {"display_name": names[name], "description": kind.DESCRIPTION,
                   "inputs": {each: _entry(each, declared[1]["tooltip"]) for each, declared in inputs_of(kind).items()},
                   "outputs": {str(number): _entry(*pair) for number, pair in
                               enumerate(zip(outputs_of(kind), kind.OUTPUT_TOOLTIPS, strict=True))}}
            for name, kind in nodes.items()}


def _entry(name: str, tooltip: str) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip}


def english(nodes: Mapping[str, type[Any]], names: Mapping[str, str]) -> str:
    """The content of the English file."""
    return json.dumps(texts(nodes, names), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    ours = Host(ROOT / "build" / "host").pack().module("nodes")
    file_of("en").write_text(english(ours.NODE_CLASS_MAPPINGS, ours.NODE_DISPLAY_NAME_MAPPINGS), encoding="utf-8")
