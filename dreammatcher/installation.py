"""The part of a bug report about a machine and its software. It names no folder, no user and no machine."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

PACK = Path(__file__).absolute().parent.parent


def version(folder: Path = PACK) -> str:
    """The version that a pack's pyproject.toml states, or an empty string."""
    try:
        found = re.search(r'^version\s*=\s*"([^"]+)"', (folder / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return ""
    return found[1] if found else ""


def packs(folders: Iterable[Path]) -> list[str]:
    """Names of the node packs in some ``custom_nodes`` folders, with the version of each that states one. Those that are switched
    off, and this one, are left out."""
    found = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            loaded = path.is_dir() or path.suffix == ".py"
            if loaded and not path.name.startswith((".", "__")) and not path.name.endswith((".disabled", ".example")):
                if path.is_dir() and path.resolve() == PACK.resolve():
                    continue
                found[path.name] = f"{path.name} {version(path)}".strip() if path.is_dir() else path.name
    return [found[name] for name in sorted(found, key=str.lower)]


def software() -> dict[str, str]:
    """The pack, Python, system and torch."""
    built = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    backend = next((f" ({name} {number})" for name, number in built.items() if number), "")
    return {"DreamMatcher": version() or "unknown version",
            "Python": platform.python_version(), "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
            "torch": torch.__version__ + ("" if "+" in torch.__version__ else backend)}


def gigabytes(size: float) -> str:
    """Bytes as GB of 2^30 bytes."""
    return f"{size / 2**30:.1f} GB"


def report(facts: Mapping[str, str]) -> str:
    """A text that an issue takes as it is."""
    return "\n".join(["DreamMatcher Report", *(f"- {name}: {value}" for name, value in facts.items())])
