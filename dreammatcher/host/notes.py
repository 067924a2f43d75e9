"""Says on a node of the graph, and in the console, what an artist must not overlook."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger(__name__)

#: what our part of the front end listens for, where the host's shows no texts on nodes
EVENT = "dreammatcher.note"


def server() -> object | None:
    """The host's server, when it runs and someone is connected to it."""
    for name in ("server", "comfy.cmd.server"):
        running = getattr(getattr(sys.modules.get(name), "PromptServer", None), "instance", None)
        if running is not None and getattr(running, "client_id", None) is not None:
            return running
    return None


def tell(text: str) -> None:
    """Logs ``text`` as a warning and shows it on the node that is running."""
    log.warning("DreamMatcher: %s", text)
    running = server()
    node = getattr(running, "last_node_id", None)
    if node is None:
        return
    if hasattr(running, "send_progress_text"):  # since 2025
        running.send_progress_text(text, node, running.client_id)
    else:
        running.send_sync(EVENT, {"node": node, "text": text}, running.client_id)
