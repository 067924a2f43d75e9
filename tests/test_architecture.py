"""Import rules, read from the source: data flows from nodes to host to method functions, and back."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from harness.library import ROOT

PACKAGES = ("dreammatcher", "nodes", "toybox", "harness", "benchmarks")
HOST_MODULES = ("comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "execution", "app")
CLI = "dreammatcher.cli"
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
    assert not offenders(sources, lambda name: within(name, "dreammatcher") and not within(name, "dreammatcher.host", CLI),
                         lambda other: within(other, "dreammatcher.host", "nodes", "toybox", "harness", "benchmarks"))


def test_commands_import_toybox_and_the_host_late_and_only_their_shims_import_them(sources):
    assert {f"{CLI}.train", f"{CLI}.evaluate", f"{CLI}.report"} <= set(sources)
    assert not offenders(sources, lambda name: within(name, CLI), lambda other: within(other, "nodes", "harness", "benchmarks"))
    assert not offenders(sources, lambda name: within(name, CLI), lambda other: within(other, "dreammatcher.host", "toybox"),
                         everywhere=False)
    shims = ("dreammatcher.training.__main__", "dreammatcher.evaluation.__main__")
    assert not offenders(sources, lambda name: not within(name, CLI, *shims), lambda other: within(other, CLI))
    for shim in shims:
        assert len(sources[shim].read_text(encoding="utf-8").splitlines()) < 12


def test_what_ships_imports_nothing_of_tests_benchmarks_and_making(sources):
    making = ("harness", "benchmarks", "tests", "toybox.making")
    assert not offenders(sources, lambda name: not within(name, *making), lambda other: within(other, *making))


#: rooms of the host -> their floor; a room imports from lower floors alone
FLOORS = {"graph": 0, "text": 0, "model": 1, "sampling": 2, "matching": 3, "training": 3, "vico": 3, "sefi": 3, "scoring": 3}
#: rooms whose method is trained by the engine of another one
TRAINED_BY = {("vico", "training"), ("sefi", "training")}


def room_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[2] if parts[:2] == ["dreammatcher", "host"] and len(parts) > 2 else None


def test_every_module_of_the_host_lies_in_a_room_of_the_plan(sources):
    assert {room_of(name) for name in sources} - {None} == set(FLOORS)


def test_rooms_of_the_host_import_from_lower_floors_alone(sources):
    def upwards(name: str, other: str) -> bool:
        own, its = room_of(name), room_of(other)
        return bool(own and its) and own != its and FLOORS[its] >= FLOORS[own] and (own, its) not in TRAINED_BY

    assert not [f"{name} imports {other}" for name, file in sources.items() for other in imports(name, file, sources)
                if upwards(name, other)]
    assert upwards("dreammatcher.host.graph.notes", "dreammatcher.host.text.words"), "the check itself sees an arrow"


def test_the_core_of_the_host_knows_no_method(sources):
    core = tuple(f"dreammatcher.host.{room}" for room, floor in FLOORS.items() if floor < 3)
    methods = tuple(f"dreammatcher.{method}" for method in ("matching", "training", "vico", "sefi", "evaluation"))
    assert not offenders(sources, lambda name: within(name, *core), lambda other: within(other, *methods))


def test_what_all_methods_share_knows_none_of_them(sources):
    def shared(name: str) -> bool:
        return within(name, "dreammatcher.backbones") or (name.count(".") == 1 and sources[name].name != "__init__.py")

    methods = [name for name in sources if name.startswith("dreammatcher.") and not shared(name)]
    assert "dreammatcher.subject" in sources and len(methods) > 50
    assert not offenders(sources, lambda name: name.startswith("dreammatcher.") and shared(name), lambda other: other in methods)


def test_backbones_import_nothing_of_ours(sources):
    assert not offenders(sources, lambda name: within(name, "dreammatcher.backbones"),
                         lambda other: within(other, "dreammatcher") and not within(other, "dreammatcher.backbones"))


#: how the networks' code names its blocks and their hooks
BLOCKS = re.compile(r"attn[12]_patch|(in|out)put_block|middle_block|c_crossattn|ResBlock|BasicTransformerBlock|double_block")


def test_only_backbones_and_the_model_room_name_kinds_of_blocks(sources):
    allowed = ("dreammatcher.backbones", "dreammatcher.host.model")
    assert BLOCKS.search(sources["dreammatcher.host.model.patch_points"].read_text(encoding="utf-8"))
    assert not [f"{name}: {match[0]}" for name, file in sources.items()
                if within(name, "dreammatcher", "nodes") and not within(name, *allowed)
                for match in BLOCKS.finditer(file.read_text(encoding="utf-8"))]


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


#: a docstring that opens so is half a sentence: it begins with what a thing is or does
HALF_A_SENTENCE = re.compile(r"\s*(What|Where|Which|Whether|Of|As|How|That|To|If|Whose|Who|When)\b")


def docstrings(file: Path) -> list[tuple[str, str]]:
    """Names and docstrings of a module, its classes and all functions."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, documented)]
    return [(getattr(node, "name", "module"), text) for node in nodes if (text := ast.get_docstring(node))]


def test_every_docstring_begins_with_what_the_thing_is_or_does(sources):
    assert HALF_A_SENTENCE.match("Whether a file is there.") and not HALF_A_SENTENCE.match("Offsets of parts.")
    known = {name: docstrings(file) for name, file in sources.items()}
    assert sum(map(len, known.values())) > 1000
    assert not [f"{name}, {thing}: {text.splitlines()[0]}" for name, texts in known.items() for thing, text in texts
                if HALF_A_SENTENCE.match(text)]
