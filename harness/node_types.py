"""Checks the types of ``nodes/``: a part of ``make lint``.

Its modules import from above their own package, as the host loads the pack. So mypy is shown the repository as one package.
"""

from __future__ import annotations

import os
import subprocess
import sys

from .library import ROOT

#: where the repository stands as a package, by a link that is there while types are checked
FOLDER = ROOT / "build" / "types"


def main() -> int:
    """mypy's exit code."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pack = FOLDER / "pack"
    pack.unlink(missing_ok=True)
    pack.symlink_to(ROOT, target_is_directory=True)
    try:
        return subprocess.run([sys.executable, "-m", "mypy", "--package", "pack.nodes"], cwd=ROOT,
                              env={**os.environ, "MYPYPATH": str(FOLDER)}).returncode
    finally:
        pack.unlink()


if __name__ == "__main__":
    sys.exit(main())
