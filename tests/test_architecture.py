"""Import rules, read from the source: data flows from nodes to host to method functions, and back."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from harness.library import ROOT

PACKAGES = ("dreammatcher", "nodes", "toybox", "harness", "benchmarks")
HOST_MODULES = ("comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "execution", "app")
HOSTS = ("dreammatcher.host", "toybox.host", "toybox.transformer", "toybox.making")


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def sources() -> dict[str, Path]:
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"], cwd=ROOT,
                            capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split()] or sorted(ROOT.glob("*/**/*.py"))
    return {module_of(file): file for file in files if file.relative_to(ROOT).parts[0] in PACKAGES and file.exists()}


def imports(name: str, file: Path, known: dict[str, Path], everywhere: bool = True) -> set[str]:
    """Absolute names of the modules that a module imports; not those inside functions unless ``everywhere``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else tree.body
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    modules = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join(part for part in (*above, node.module) if part)
            for alias in node.names:
                inner = f"{module}.{alias.name}" if module else alias.name
                modules.add(inner if inner in known else module)
    return modules


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offenders(sources, who, what, everywhere=True) -> list[str]:
    return sorted(f"{name} imports {other}" for name, file in sources.items() if who(name)
                  for other in imports(name, file, sources, everywhere) if what(other))


def test_the_reader_of_imports_sees_relative_and_late_ones(sources):
    assert "dreammatcher.matching.correspondence" in imports(
        "dreammatcher.matching.appearance", sources["dreammatcher.matching.appearance"], sources)
    assert within("comfy.samplers", "comfy") and not within("comfyui", "comfy")


def test_only_the_host_packages_import_comfyui(sources):
    assert not offenders(sources, lambda name: within(name, "dreammatcher", "toybox", "nodes") and not within(name, *HOSTS),
                         lambda other: within(other, *HOST_MODULES))


def test_methods_import_neither_host_nor_nodes_nor_toybox(sources):
    entries = ("dreammatcher.training.__main__", "dreammatcher.evaluation.__main__")  # put all of them together, for a terminal
    assert not offenders(sources, lambda name: within(name, "dreammatcher") and not within(name, "dreammatcher.host", *entries),
                         lambda other: within(other, "dreammatcher.host", "nodes", "toybox", "harness", "benchmarks"))


def test_what_ships_imports_nothing_of_tests_benchmarks_and_making(sources):
    making = ("harness", "benchmarks", "tests", "toybox.making")
    assert not offenders(sources, lambda name: not within(name, *making), lambda other: within(other, *making))


def test_the_core_of_the_host_knows_no_method(sources):
    names = ("matching", "training", "vico", "sefi", "evaluation", "host.scoring")
    methods = tuple(f"dreammatcher.{where}{method}" for where in ("", "host.") for method in names)
    assert not offenders(sources, lambda name: within(name, "dreammatcher.host") and not within(name, *methods),
                         lambda other: within(other, *methods))


def test_what_all_methods_share_knows_none_of_them(sources):
    shared = ("dreammatcher.subject", "dreammatcher.attention", "dreammatcher.backbones.unet", "dreammatcher.store",
              "dreammatcher.files", "dreammatcher.texts", "dreammatcher.devices", "dreammatcher.pictures")
    assert set(shared) <= set(sources)
    assert not offenders(sources, lambda name: name in shared,
                         lambda other: within(other, "dreammatcher") and other not in shared)


def test_nodes_import_no_tensor_library(sources):
    assert not offenders(sources, lambda name: within(name, "nodes"),
                         lambda other: within(other, "torch", "numpy", "einops", "kornia"))


def test_no_module_imports_itself_in_a_circle(sources):
    graph = {name: {other for other in imports(name, file, sources) if other in sources and other != name}
             for name, file in sources.items()}

    def circle(name: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in path:
            return (*path[path.index(name):], name)
        if name in cleared:
            return None
        for other in sorted(graph[name]):
            loop = circle(other, (*path, name))
            if loop:
                return loop
        cleared.add(name)
        return None

    cleared: set[str] = set()
    assert not [loop for name in sorted(graph) if (loop := circle(name, ()))]


def classes(file: Path) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]


def fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [part for part in node.body if isinstance(part, ast.AnnAssign)]


def test_no_class_has_more_than_ten_fields(sources):
    assert not [f"{name}.{node.name}: {len(fields(node))}" for name, file in sources.items() for node in classes(file)
                if len(fields(node)) > 10]


def test_frozen_classes_that_hold_tensors_are_compared_by_identity(sources):
    """Tensors have no truth value: a generated __eq__ would raise, where it compares them."""
    wrong = []
    for name, file in sources.items():
        for node in classes(file):
            dataclass = next((ast.unparse(one) for one in node.decorator_list if "dataclass" in ast.unparse(one)), "")
            holds = any("Tensor" in ast.unparse(field.annotation) or "ndarray" in ast.unparse(field.annotation)
                        for field in fields(node) if field.value is None or "compare=False" not in ast.unparse(field.value))
            if "frozen=True" in dataclass and holds and "eq=False" not in dataclass:
                wrong.append(f"{name}.{node.name}")
    assert not wrong


def test_public_functions_of_the_methods_and_of_the_core_say_what_they_return(sources):
    """Patches and what is handed through for the host keep the host's signatures."""
    untyped = []
    for name, file in sources.items():
        if not within(name, "dreammatcher"):
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.returns is None:
                untyped.append(f"{name}.{node.name}")
    assert not untyped
