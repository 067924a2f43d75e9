"""Tells the artist, when a prompt arrives, what to do instead of a bypass that cannot work.

The front end leaves a bypassed node out of the prompt and connects each of its outputs to its first input of that type. An
output without such an input leaves what follows unconnected: the host refuses that part of the graph, and names the input that is
missing but not the reason. The workflow that comes with the prompt has it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import notes

log = logging.getLogger(__name__)

MUTED, BYPASSED = 2, 4
DEFAULT = "ComfyUI has nothing to pass on in its place; bypass or mute what needs it too, or switch it on again"


@dataclass(frozen=True)
class Gap:
    """An input that a bypassed node leaves without a value."""

    node: str  # the bypassed node's number, that of its subgraph in front
    text: str


def listen(kinds: Mapping[str, type[Any]]) -> None:
    """Looks at every prompt that the host's server is sent, for bypassed nodes of ``kinds``; does nothing without a server."""
    running = notes.server_instance()
    if running is None or not hasattr(running, "add_on_prompt_handler"):
        return

    def look(sent: dict[str, Any]) -> dict[str, Any]:
        for gap in gaps(sent, kinds, _known(running)):
            log.warning("DreamMatcher: %s", gap.text)
            notes.show(running, gap.node, gap.text, sent.get("client_id"))
        return sent

    running.add_on_prompt_handler(look)


def _known(running: object) -> Mapping[str, type[Any]]:
    """The host's nodes."""
    for place in (getattr(running, "nodes", None), sys.modules.get("nodes")):
        if known := getattr(place, "NODE_CLASS_MAPPINGS", None):
            return known
    return {}


def gaps(sent: Mapping[str, Any], kinds: Mapping[str, type[Any]], known: Mapping[str, type[Any]]) -> list[Gap]:
    """The inputs that a prompt lacks because a node of ``kinds`` is bypassed, one text for each of these nodes.

    ``sent`` is what the front end posts: ``prompt``, and the workflow in ``extra_data``. ``known`` are the host's nodes, by
    which inputs that need no value are told.
    """
    workflow = ((sent.get("extra_data") or {}).get("extra_pnginfo") or {}).get("workflow") or {}
    prompt, gaps_by_node = sent.get("prompt") or {}, {}
    for graph, prefix in _graphs(workflow):
        nodes = {str(node["id"]): node for node in graph.get("nodes", ())}
        links = [_ends(link) for link in graph.get("links", ())]
        for number, node in nodes.items():
            if node.get("mode") != BYPASSED or node.get("type") not in kinds:
                continue
            lacking = list(dict.fromkeys(_lacking(number, nodes, links, prompt, prefix, known)))  # nodes may share a title
            if lacking:
                kind = kinds[node["type"]]
                text = (f"{kind.TITLE} is bypassed, and nothing comes to {', '.join(lacking)}: "
                        f"{getattr(kind, 'INSTEAD', DEFAULT)}")
                gaps_by_node[prefix + number] = Gap(prefix + number, text)
    return list(gaps_by_node.values())


def _lacking(number: str, nodes: Mapping[str, dict], links: list[tuple[str, str, int]], prompt: Mapping[str, dict], prefix: str,
             known: Mapping[str, type[Any]], seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Nodes that follow one, past others that are not in the prompt, and lack an input that they need."""
    for origin, target, slot in links:
        if origin != number or target not in nodes or target in seen:
            continue
        entry, node = prompt.get(prefix + target), nodes[target]
        inputs = node.get("inputs") or ()
        if entry is None:
            if node.get("mode") != MUTED:
                yield from _lacking(target, nodes, links, prompt, prefix, known, seen | {number})
        elif slot < len(inputs) and inputs[slot]["name"] not in entry["inputs"] and _needed(known, entry, inputs[slot]["name"]):
            yield f"{inputs[slot]['name']} of {node.get('title') or node['type']}"


def _needed(known: Mapping[str, type[Any]], entry: Mapping[str, Any], name: str) -> bool:
    kind = known.get(entry["class_type"])
    return kind is None or name in kind.INPUT_TYPES().get("required", {}) or name in getattr(kind, "ONCE_CONNECTED", ())


def _graphs(workflow: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The workflow and every subgraph in it, with what stands in front of the numbers of its nodes in a prompt."""
    definitions = {subgraph["id"]: subgraph for subgraph in (workflow.get("definitions") or {}).get("subgraphs", ())}

    def within(graph: Mapping[str, Any], prefix: str) -> Iterator[tuple[Mapping[str, Any], str]]:
        yield graph, prefix
        for node in graph.get("nodes", ()):
            if node.get("type") in definitions and node.get("mode") not in (MUTED, BYPASSED) and prefix.count(":") < 16:
                yield from within(definitions[node["type"]], f"{prefix}{node['id']}:")

    yield from within(workflow, "")


def _ends(link: Any) -> tuple[str, str, int]:
    """Origin, target and the target's slot of a link in either form."""
    if isinstance(link, Mapping):
        return str(link["origin_id"]), str(link["target_id"]), int(link["target_slot"])
    return str(link[1]), str(link[3]), int(link[4])
