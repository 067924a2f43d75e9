"""Records of a method's runs for previews and inspectors, found again by the pictures that the runs made.

The host may have a picture from its cache while the node that patched the model ran anew, and two samplers may share one
patched model. So a run's record is kept under the node that sampled, and whoever shows pictures looks for it in front of them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from ...store import RunStore

try:  # newer hosts tell a node where in the graph it runs
    from comfy_execution.progress import get_progress_state
    from comfy_execution.utils import get_executing_context
except ImportError:
    get_progress_state = get_executing_context = None
try:  # the packaged host
    from comfy.execution_context import current_execution_context
except ImportError:
    current_execution_context = None

#: bytes that the records of all runs may fill
ROOM = 256 << 20


class Record(Protocol):
    """The record of one run."""

    def bytes(self) -> int: ...


@dataclass(frozen=True)
class Place:
    """A node of a graph, as it is there with everything in front of it."""

    node: str = ""  # its number; empty where the host does not tell, and outside of graphs
    source: str = ""  # hash of its inputs and of all nodes in front of it; empty on hosts that do not show the graph
    item: int = 0  # where the host runs a node for each thing in a list: the number of the thing

    def key(self) -> tuple[str, int]:
        return self.source or self.node, self.item


class Graph:
    """The nodes of a prompt, by number: class, inputs and links. Nodes that one has put in its own place count as that one."""

    def __init__(self, prompt: Any):
        self._prompt = prompt
        self._sources: dict[str, str] = {}

    def _entry(self, node: str) -> Mapping[str, Any]:
        """Class and inputs of a node; nothing where there is no such node."""
        if isinstance(self._prompt, Mapping):
            return self._prompt.get(node, {})
        return self._prompt.get_node(node) if self._prompt.has_node(node) else {}

    def whole(self, node: str) -> str:
        """The node of the artist's graph that ``node`` belongs to."""
        return self._prompt.get_real_node_id(node) if hasattr(self._prompt, "get_real_node_id") else node

    def links(self, node: str, name: str | None = None) -> list[str]:
        """Numbers of the nodes that lead into ``node``, or into one input of it."""
        inputs = self._entry(node).get("inputs", {})
        chosen = inputs.values() if name is None else [inputs.get(name)]
        return [str(value[0]) for value in chosen if is_link(value)]

    def source(self, node: str) -> str:
        """A hash of what a node computes: its class, its inputs and the nodes in front of it. Their numbers do not count."""
        if node not in self._sources:
            self._sources[node] = ""  # a circle, which no host runs
            entry = self._entry(node)
            inputs = [[name, [self.source(str(value[0])), value[1]] if is_link(value) else repr(value)]
                      for name, value in sorted(entry.get("inputs", {}).items())]
            self._sources[node] = hashlib.sha256(json.dumps([entry.get("class_type"), inputs]).encode()).hexdigest()
        return self._sources[node]

    def before(self, node: str, name: str | None = None) -> Iterator[str]:
        """All nodes in front of ``node``, or of one input of it, the nearest first."""
        waiting, met = self.links(node, name), set()
        while waiting:
            number = waiting.pop(0)
            if number not in met:
                met.add(number)
                yield number
                waiting += self.links(number)


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], int)


@dataclass(frozen=True)
class Element:
    """One run of a node that takes whole lists and runs once for each of their elements."""

    number: int
    given: Mapping[str, list]  # its lists, by the name of the input


_element: ContextVar[Element | None] = ContextVar("element", default=None)


@contextmanager
def at_element(number: int, given: Mapping[str, list]) -> Iterator[None]:
    """Context in which a node works on the elements ``number`` of its lists ``given``, whatever the host says."""
    token = _element.set(Element(number, given))
    try:
        yield
    finally:
        _element.reset(token)


def here() -> Place:
    """The place in the graph at which the calling code runs."""
    context = get_executing_context() if get_executing_context is not None else None
    if context is None:
        return Place(str(getattr(_server(), "last_node_id", None) or ""))
    state = get_progress_state()
    graph, element = Graph(state.dynprompt), _element.get()
    item = (context.list_index or 0) if element is None else element.number
    node = graph.whole(context.node_id)
    return Place(node, graph.source(node) if state.prompt_id == context.prompt_id else "", item)


def _server() -> object | None:
    """The host's server, which older hosts tell what node they run."""
    if current_execution_context is not None:
        return current_execution_context().server
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def owner_here() -> str:
    """A name for what the node that runs makes: the same when the same graph runs again, where the host tells."""
    place = here()
    return f"{place.source} {place.item}" if place.source else uuid.uuid4().hex


@dataclass(frozen=True)
class Viewer:
    """The node that shows pictures, and the input that they come into."""

    prompt: Mapping[str, Any] | None = None  # the graph as the host hands it to a node; None outside of graphs
    node: str = ""
    input: str = ""


@dataclass(frozen=True, eq=False)
class FoundRecords:
    """The records that belong to some pictures."""

    records: tuple[Any, ...] = ()  # of the last runs in front of them; several where their pictures were put together
    nodes: tuple[str, ...] = ()  # that sampled
    of_element: bool = True  # whether the run belongs to this element of a list alone, and not to the whole list

    def reason(self, maker: str) -> str:
        """Why there is not one record to show."""
        if self.nodes:
            return (f"these pictures come from {len(self.nodes)} runs (nodes {', '.join(self.nodes)}); connect those of one "
                    "sampler")
        return (f"there is no record of a run that made these pictures with the model of this {maker}. Connect the pictures of a "
                "sampler that uses it; where ComfyUI had them from its cache, sample again with another seed")


def first_of(name: str, batch: int, of_element: bool) -> int | None:
    """Number, in a run of ``batch`` pictures, of the first picture at a node's input ``name``; None if it is not known.

    Pictures of one run may come as a list: its elements together are then the run, or each of them is all of it once more.
    """
    element = _element.get()
    if element is None:
        return 0
    counts = [len(one) for one in element.given.get(name, ())]
    if len(counts) < 2 or (of_element and element.number):
        return 0
    mine = counts[min(element.number, len(counts) - 1)]
    if sum(counts) == batch:
        return sum(counts[:element.number])
    return 0 if mine == batch else None


class Records:
    """The last runs, as long as there is room for them."""

    def __init__(self, room: int = ROOM):
        self.kept, self.room = RunStore(), room

    def keep(self, owner: str, place: Place, record: Record) -> None:
        """Keeps the record of a run of what ``owner`` made, in place of an earlier one of the same node."""
        self.kept.start_run()
        key = (owner, *place.key())
        self.kept.forget(key)
        if self.kept.make_room(record.bytes(), self.room):
            self.kept.keep(key, record)

    def find(self, owner: str, viewer: Viewer) -> FoundRecords | None:
        """The records of what ``owner`` made in the runs that led to some pictures. None where the host does not tell which."""
        if viewer.prompt is None or self._at(owner, Place()) is not None:
            return None
        graph, item = Graph(_whole_graph(viewer.prompt, viewer.node)), here().item
        records: dict[str, tuple[Any, bool]] = {}
        for node in graph.before(viewer.node, viewer.input):
            places = [Place(node, source, number) for source in (graph.source(node), "") for number in (item, 0)]
            known = next(((record, place) for place in places if (record := self._at(owner, place)) is not None), None)
            if known is not None:
                records[node] = known[0], known[1].item == item
        last = [node for node in records if not any(node in graph.before(other) for other in records if other != node)]
        return FoundRecords(tuple(records[node][0] for node in last), tuple(last), not last or records[last[0]][1])

    def _at(self, owner: str, place: Place) -> Any | None:
        return self.kept.find((owner, *place.key()))


def _whole_graph(prompt: Mapping[str, Any], node: str) -> Any:
    """The graph with the nodes that others have put into it while it runs, where the host shows them."""
    if get_progress_state is not None and get_executing_context() is not None:
        running = get_progress_state().dynprompt
        if running.has_node(node):
            return running
    return prompt


#: where no graph says whose pictures are looked at
OUTSIDE = Viewer()
#: of this process
RECORDS = Records()
