"""*DreamMatcher Report*: what a bug report has to say about this ComfyUI, on a route of its server."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import comfy.model_management as management
import folder_paths

from ...installation import gigabytes, packs, report, software
from ..graph import notes
from .backbone import BACKBONES, backbone_of, network_of

ROUTE = "/dreammatcher/report"


def host() -> str:
    """ComfyUI's version, and whether it is the package or a checkout."""
    if "comfy.cmd" in sys.modules:
        return f"packaged ComfyUI {_installed('comfyui')}"
    try:
        from comfyui_version import __version__
    except ImportError:
        return "ComfyUI, a checkout older than its version numbers"
    return f"ComfyUI {__version__}"


def text() -> str:
    """The report. It loads no model."""
    device = management.get_torch_device()
    name = management.get_torch_device_name(device)
    memory = f"{gigabytes(management.get_total_memory(device))} in all, {gigabytes(management.get_free_memory(device))} free"
    models = [_model(loaded) for loaded in management.current_loaded_models]
    known = ", ".join(kind.__name__ for kind in BACKBONES)
    return report({**software(), "model families": known, "host": host(), "front end": _installed("comfyui-frontend-package"),
                   "device": f"{name}, {memory}", "memory mode": management.vram_state.name,
                   "loaded models": ", ".join(filter(None, models)) or "none",
                   "other packs": ", ".join(packs(map(Path, folder_paths.get_folder_paths("custom_nodes")))) or "none"})


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "no package"


def _model(loaded: object) -> str:
    """The class of a loaded model, and the family as which it is matched where it is one that draws."""
    model = getattr(getattr(loaded, "model", None), "model", None)
    if model is None:
        return ""
    if not hasattr(model, "diffusion_model"):
        return type(model).__name__
    try:
        family = backbone_of(model).family
    except ValueError:
        family = f"{type(network_of(model)).__name__}, which is not matched"
    return f"{type(model.model_config).__name__} ({family})"


def listen() -> None:
    """Puts the report on the host's server; does nothing without one."""
    running = notes.server_instance()
    if running is None or not hasattr(running, "routes"):
        return
    from aiohttp import web

    @running.routes.get(ROUTE)
    async def answer(_):
        return web.Response(text=text())
