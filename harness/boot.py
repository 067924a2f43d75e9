"""A real ComfyUI in this process: nodes registered, the pack loaded as a custom node, prompts through the executor."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .library import ROOT, upstream_path, use_library

PACK_NAME = "comfyui-dreammatcher"
#: what a host may keep of a graph between two prompts; older ones know the first alone
CACHES = ("default", "classic", "lru", "none")


@dataclass(frozen=True)
class Result:
    """The result of one prompt."""

    success: bool
    ui: dict[str, dict]  # outputs by node number
    messages: list[tuple[str, dict]]

    def error(self) -> str:
        """The message of the exception that ended the prompt, or an empty string."""
        return next((data["exception_message"] for event, data in self.messages if event == "execution_error"), "")


def install_pack(folder: Path) -> Path:
    """Links this repository into ``folder``/custom_nodes, as a user's clone would lie there."""
    custom_nodes = folder / "custom_nodes"
    custom_nodes.mkdir(parents=True, exist_ok=True)
    link = custom_nodes / PACK_NAME
    if not link.exists():
        os.symlink(ROOT, link, target_is_directory=True)
    return custom_nodes


class Host:
    """The booted host. Make one per process."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.upstream = upstream_path() is not None
        custom_nodes = install_pack(self.folder)
        use_library(self.folder)
        if self.upstream:
            self._boot_upstream()
        else:
            self._boot_package(custom_nodes)

    def _boot_package(self, custom_nodes: Path) -> None:
        import comfy.cmd.execution as execution
        import comfy.cmd.folder_paths as folder_paths
        import comfy.nodes.package

        folder_paths.add_model_folder_path("custom_nodes", str(custom_nodes))
        self.nodes = comfy.nodes.package.import_all_nodes_in_workspace().NODE_CLASS_MAPPINGS
        self.execution, self.folder_paths = execution, folder_paths
        self.server = _QuietServer()

    def _boot_upstream(self) -> None:
        import execution
        import folder_paths
        import server
        import utils.extra_config  # noqa: F401  must come before nodes

        import nodes

        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.server = server.PromptServer(self.loop)
        self.loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False))
        self.nodes, self.execution, self.folder_paths = nodes.NODE_CLASS_MAPPINGS, execution, folder_paths

    def caches(self) -> tuple[str, ...]:
        """The kinds of :data:`CACHES` that this host has."""
        return CACHES if "cache_args" in inspect.signature(self.execution.PromptExecutor).parameters else CACHES[:1]

    def executor(self, cache: str = ""):
        """A prompt executor with an empty cache of a kind.

        Without a kind it is the one that COMFYUI_CACHE names, or the host's own default. Raises ValueError for a kind that this
        host does not have.
        """
        cache = cache or os.environ.get("COMFYUI_CACHE") or CACHES[0]
        if cache not in self.caches():
            raise ValueError(f"cache: {cache!r} is not known to this host; it has {', '.join(self.caches())}")
        if self.caches() == CACHES[:1]:
            return self.execution.PromptExecutor(self.server)
        kinds, memory = self.execution.CacheType, self._memory()
        kind = {"default": getattr(kinds, "RAM_PRESSURE", kinds.CLASSIC), "classic": kinds.CLASSIC, "lru": kinds.LRU,
                "none": getattr(kinds, "NONE", getattr(kinds, "DEPENDENCY_AWARE", None))}[cache]
        sizes = {"lru": 50 if cache == "lru" else 0, "ram": min(10.0, max(2.0, memory / 10)), "ram_inactive": min(128.0, memory)}
        return self.execution.PromptExecutor(self.server, cache_type=kind, cache_args=sizes)

    @staticmethod
    def _memory() -> float:
        """Main memory in GB, of which the host's default cache leaves a tenth free."""
        import comfy.model_management

        return comfy.model_management.total_ram / 1024

    def check(self, prompt: dict[str, Any]) -> list[str]:
        """The nodes that a prompt is run for. Raises ValueError when the host refuses it."""
        if self.upstream:
            valid = self.loop.run_until_complete(self.execution.validate_prompt(uuid.uuid4().hex, prompt, None))
        else:
            valid = self.execution.validate_prompt(prompt)
        if not valid[0] or valid[3]:  # the host runs what it can and leaves out outputs that are wrong
            raise ValueError(f"the host refused the prompt: {json.dumps(valid[1:], default=str)}")
        return valid[2]

    def run(self, prompt: dict[str, Any], executor=None) -> Result:
        """Validates and executes an API prompt. Raises ValueError when the host refuses it."""
        number, outputs = uuid.uuid4().hex, self.check(prompt)
        executor = executor or self.executor()
        executor.execute(prompt, number, {"client_id": "harness"}, outputs)
        if self.upstream:
            return Result(executor.success, executor.history_result["outputs"], executor.status_messages)
        return Result(executor.success, executor.outputs_ui, executor.status_messages)

    def pack(self) -> SimpleNamespace:
        """Our modules as the host loaded them (their names depend on where the pack lies)."""
        root = sys.modules[self.nodes["DreamMatcherApply"].__module__.rsplit(".nodes", 1)[0]]
        return SimpleNamespace(name=root.__name__, module=lambda name: importlib.import_module(f"{root.__name__}.{name}"))

    def images(self, result: Result, node: str) -> list:
        """Pictures that a save or preview node wrote."""
        from PIL import Image

        return [Image.open(self.file(entry)) for entry in result.ui[node]["images"]]

    def file(self, entry: dict) -> Path:
        """Path of a file that a node's ui output names."""
        folders = {"output": self.folder_paths.get_output_directory(), "temp": self.folder_paths.get_temp_directory()}
        return Path(folders[entry["type"]]) / entry["subfolder"] / entry["filename"]


class _QuietServer:
    """The part of a server that the packaged host's executor uses."""

    client_id = last_node_id = last_prompt_id = None
    receive_all_progress_notifications = True

    def send_sync(self, *args, **kwargs) -> None:
        pass

    def queue_updated(self, *args, **kwargs) -> None:
        pass
