"""A workflow saved in API format, and its inputs that change from case to case."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..texts import read_text

#: what changes -> widgets that can hold it, most likely first
WIDGETS = {"reference": ("image",), "prompt": ("text", "prompt"), "seed": ("seed", "noise_seed")}
OUTPUTS = ("SaveImage", "PreviewImage")


@dataclass(frozen=True, eq=False)
class Workflow:
    """A graph, and where its changing inputs and its result are."""

    graph: dict[str, Any]
    places: dict[str, tuple[str, str]]  # reference, prompt, seed -> node, widget
    output: str  # node whose pictures count

    def with_case(self, reference: str, prompt: str, seed: int) -> dict[str, Any]:
        """The graph of one case; ``reference`` is a name in the host's input folder."""
        graph = copy.deepcopy(self.graph)
        for name, value in (("reference", reference), ("prompt", prompt), ("seed", seed)):
            if name in self.places:
                node, widget = self.places[name]
                graph[node]["inputs"][widget] = value
        return graph


def read_workflow(path: Path, given: dict[str, str], output: str | None) -> Workflow:
    """Reads a workflow in API format. ``given``: name -> "NODE.widget", for inputs that titles do not name.

    Without it, the node whose title is the name (reference, prompt, seed) is taken, else the only node that has such a widget.
    Raises ValueError, naming the input and the nodes there are, where that leaves a choice, and for files of another format.
    """
    try:
        graph = json.loads(read_text("workflow", path))
    except json.JSONDecodeError as error:
        raise ValueError(f"workflow: {path} cannot be read ({error})") from error
    nodes = list(graph.values()) if isinstance(graph, dict) else []
    if not nodes or not all(isinstance(one, dict) and "class_type" in one for one in nodes):
        raise ValueError(f"workflow: {path} is not in API format; save it with Workflow > Export (API)")
    places = {name: place for name in WIDGETS if (place := _place(graph, name, given.get(name))) is not None}
    if "prompt" not in places:
        raise ValueError("workflow: no node for the prompt was found; call it prompt in the graph, or give --set "
                         "prompt=NODE.widget")
    ends = [number for number, one in graph.items() if one["class_type"] in OUTPUTS]
    if output is None and len(ends) != 1:
        raise ValueError(f"workflow: its pictures come from {', '.join(ends) or 'no node'}; give --output NODE")
    if output is not None and output not in graph:
        raise ValueError(f"output: there is no node {output!r}; nodes are {', '.join(graph)}")
    return Workflow(graph, places, output or ends[0])


def _place(graph: dict[str, Any], name: str, given: str | None) -> tuple[str, str] | None:
    if given is not None:
        node, _, widget = given.rpartition(".")
        if node not in graph or widget not in graph[node]["inputs"]:
            raise ValueError(f"set: {name}={given} names no widget; as in {name}=6.text")
        return node, widget
    titled = [number for number, one in graph.items() if one.get("_meta", {}).get("title", "").strip().lower() == name]
    places = [(number, widget) for number in (titled or graph) for widget in WIDGETS[name]
              if widget in graph[number]["inputs"] and not isinstance(graph[number]["inputs"][widget], list)]
    if not titled and len(places) > 1:
        listed = ", ".join(f"{number}.{widget} ({graph[number]['class_type']})" for number, widget in places)
        raise ValueError(f"workflow: the {name} could be {listed}; call the right node {name!r} in the graph, or give --set "
                         f"{name}=NODE.widget")
    return places[0] if places else None
