"""Benchmarks take modules of the pack by their names, where no type checker follows: what they ask of them is there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def module_named(value: ast.expr) -> str | None:
    """The name in ``module("...")``."""
    if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.Constant):
        function = value.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        return value.args[0].value if called == "module" else None
    return None


def assigned(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Variables that a statement sets to modules of the pack, and the modules' names."""
    if isinstance(node, ast.Assign):
        target, value = node.targets[0], node.value
        several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        pairs = zip(target.elts, value.elts) if several else [(target, value)]
        yield from ((each.id, name) for each, given in pairs if isinstance(each, ast.Name) and (name := module_named(given)))


def asked(source: str) -> set[tuple[str, str]]:
    """(module of the pack, name in it) for all that a file takes from such modules."""
    pairs = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            modules = dict(pair for node in ast.walk(function) for pair in assigned(node))
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute):
                    variable = modules.get(node.value.id) if isinstance(node.value, ast.Name) else None
                    if name := module_named(node.value) or variable:
                        pairs.add((name, node.attr))
    return pairs


def names_in(module: str) -> set[str]:
    """The names that a module binds, or nothing where there is none."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return names


def test_what_benchmarks_take_from_modules_of_the_pack_by_name_is_there():
    pairs = {pair for file in (ROOT / "benchmarks").glob("*.py") for pair in asked(file.read_text(encoding="utf-8"))}
    assert len(pairs) > 25
    assert sorted(pair for pair in pairs if pair[1] not in names_in(pair[0])) == []


def test_the_reader_sees_modules_in_variables_and_in_calls():
    source = 'def f(self):\n    one, other = self.module("a.b"), module("c")\n    return one.x, other.y, host.module("d").z'
    assert asked(source) == {("a.b", "x"), ("c", "y"), ("d", "z")} and names_in("dreammatcher.nowhere") == set()
