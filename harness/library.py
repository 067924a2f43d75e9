"""Makes ComfyUI importable in this process: an upstream checkout named by COMFYUI_PATH, or the package from PyPI."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def upstream_path() -> Path | None:
    """The checkout that COMFYUI_PATH names, or None for the packaged host."""
    value = os.environ.get("COMFYUI_PATH")
    if not value:
        return None
    path = Path(value).expanduser().resolve()
    if not (path / "comfy" / "sd.py").is_file():
        raise RuntimeError(f"COMFYUI_PATH={value} is not a ComfyUI checkout: it has no comfy/sd.py")
    return path


def on_cuda() -> bool:
    """True if COMFYUI_DEVICE=cuda asks for a graphics card. Otherwise everything runs on the CPU."""
    return os.environ.get("COMFYUI_DEVICE") == "cuda"


def use_library(folder: Path, *flags: str) -> None:
    """Parse the host's command line and import it. ``folder`` holds its models, input and output folders.

    The packaged host is the PyPI ``comfyui==0.0.1``. Raises RuntimeError when something has imported it before: it would have
    chosen a device without having read the command line.
    """
    if "comfy.model_management" in sys.modules:
        raise RuntimeError("ComfyUI was imported before its command line was read; import what needs it later")
    folder.mkdir(parents=True, exist_ok=True)
    flags = (*(() if on_cuda() else ("--cpu",)), *flags)
    warnings.filterwarnings("ignore", message="Failed to load image Python extension")
    upstream = upstream_path()
    if upstream is None:
        sys.argv = ["comfyui", "--cwd", str(folder), "--disable-known-models", *flags]
        from comfy.cmd.main_pre import args  # noqa: F401  parses the command line
        return
    sys.argv = ["main.py", "--base-directory", str(folder), "--disable-api-nodes", *flags]
    sys.path.insert(0, str(upstream))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    if on_cuda():
        load_weights_dynamically()


def load_weights_dynamically() -> None:
    """Makes models load layer by layer while they run, as current ComfyUI's main.py does on NVIDIA cards."""
    import comfy_aimdo.control
    from comfy.cli_args import enables_dynamic_vram

    if not enables_dynamic_vram():
        return
    comfy_aimdo.control.init()
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    if not comfy_aimdo.control.init_devices((device.index, 0) for device in comfy.model_management.get_all_torch_devices()):
        raise RuntimeError("comfy-aimdo does not work here; give --disable-dynamic-vram")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
