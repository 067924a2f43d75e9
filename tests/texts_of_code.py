"""Texts as the code has them: those of a Python file, and the server's sentences with their translations in the front end."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harness.library import ROOT

LANGUAGES = ("zh", "ja", "ko")
SAID = ROOT / "web" / "js" / "said"


def strings_of(path: Path) -> Iterator[str]:
    """The texts of a Python file without its docstrings; values of f-strings are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.body[0].value) for node in ast.walk(tree)
               if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
               and node.body and isinstance(node.body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def without_values(text: str) -> str:
    """A sentence as :func:`strings_of` has it: "…" for each of its {places}."""
    return re.sub(r"\{[^{}]*\}", "…", text)


@cache
def rows() -> tuple[tuple[str, ...], ...]:
    """The server's sentences that the front end translates: English, then each of LANGUAGES."""
    found = []
    for path in sorted(SAID.glob("*.js")):
        table = path.read_text(encoding="utf-8").partition("export default ")[2].rstrip().removesuffix(";")
        found += [tuple(row) for row in json.loads(re.sub(r",\s*\]$", "]", table))]
    assert all(len(row) == 1 + len(LANGUAGES) for row in found)
    return tuple(found)
