"""Says on a node of the graph, and in the console, what an artist must not overlook."""

from __future__ import annotations

import logging
import sys
from typing import Any, Protocol

log = logging.getLogger(__name__)

#: what our part of the front end listens for, where the host's shows no texts on nodes
EVENT = "dreammatcher.note"


class Server(Protocol):
    """The host's server, as far as it is asked."""

    client_id: str | None

    def send_sync(self, event: str, data: dict[str, Any], sid: str | None) -> None: ...


def server_instance() -> Server | None:
    """The host's server, when there is one."""
    places = (getattr(sys.modules.get(name), "PromptServer", None) for name in ("server", "comfy.cmd.server"))
    return next(filter(None, (getattr(place, "instance", None) for place in places)), None)


def server() -> Server | None:
    """The host's server, when it runs and someone is connected to it."""
    running = server_instance()
    return running if getattr(running, "client_id", None) is not None else None


def tell(text: str) -> None:
    """Logs ``text`` as a warning and shows it on the node that is running."""
    log.warning("DreamMatcher: %s", text)
    running = server()
    node = getattr(running, "last_node_id", None)
    if running is not None and node is not None:
        show(running, node, text, running.client_id)


def show(running: Server, node: str, text: str, client: str | None) -> None:
    """Shows ``text`` on a node in the front end of a client of the host's server."""
    if hasattr(running, "send_progress_text"):  # since 2025
        running.send_progress_text(text, node, client)
    else:
        running.send_sync(EVENT, {"node": node, "text": text}, client)


def not_connected(name: str, source: str, outcome: str) -> str:
    """Says that an input has nothing, where from it would come, and what happens instead; returns the text."""
    text = f"{name}: nothing is connected, or {source} is bypassed or muted; {outcome}"
    tell(text)
    return text
