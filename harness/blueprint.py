"""``python -m harness.blueprint``: writes subgraphs/DreamMatcher Steps.json, the standard wiring as one node that can be opened.

ComfyUI of late 2025 and newer offers it in the node library; older ones do not look into the folder.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from .boot import Host
from .examples import node
from .library import ROOT
from .workflow import COLUMN, GAP, inputs_of, is_widget, outputs_of, value_of

NAME = "DreamMatcher Steps"  # the library shows the file's name; the node with everything inside is Easy (DreamMatcher)
FILE = ROOT / "subgraphs" / f"{NAME}.json"
#: outer inputs: type, and default of those that are widgets
INPUTS = {"model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",), "reference": ("IMAGE",),
          "reference_prompt": ("STRING", "a photo of a dog"), "prompt": ("STRING", "a photo of a dog on the beach"),
          "negative": ("STRING", ""), "subject_words": ("STRING", "dog"), "reference_mask": ("MASK",), "strength": ("FLOAT", 1.0)}
OUTPUTS: dict[str, tuple[str, int]] = {"model": ("8", 0), "positive": ("2", 1), "negative": ("4", 0), "trace": ("7", 1)}
WIDGETS = [name for name, declared in INPUTS.items() if len(declared) > 1]
BEFORE, AFTER = -10, -20  # the front end's numbers of a subgraph's two ends


@dataclass(frozen=True)
class Outer:
    """An inner input that comes from outside."""

    name: str


def wiring() -> dict[str, Any]:
    model, clip = Outer("model"), Outer("clip")
    return {
        "2": node("DreamMatcherSubjects", clip=clip, reference_prompt=Outer("reference_prompt"), prompt=Outer("prompt"),
                  subject_words=Outer("subject_words")),
        "4": node("CLIPTextEncode", clip=clip, text=Outer("negative")),
        "5": node("DreamMatcherInvert", model=model, image=Outer("reference"), vae=Outer("vae"), positive=["2", 0],
                  negative=["4", 0]),
        "6": node("DreamMatcherMask", reference_subject=["2", 2], target_subject=["2", 3],
                  reference_mask=Outer("reference_mask")),
        "7": node("DreamMatcherApply", model=model, reference=["5", 0], mask=["6", 0], strength=Outer("strength")),
        "8": node("DreamMatcherGuidance", model=["7", 0]),
    }


def identity(of: str) -> str:
    """The same at every writing."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dreammatcher/{of}"))


@dataclass
class Links:
    """The links inside, as the front end stores them."""

    drawn: list[dict[str, Any]] = field(default_factory=list)

    def add(self, origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> int:
        self.drawn.append({"id": len(self.drawn) + 1, "origin_id": origin, "origin_slot": origin_slot, "target_id": target,
                           "target_slot": target_slot, "type": kind})
        return len(self.drawn)

    def numbers(self, **wanted: int) -> list[int]:
        return [link["id"] for link in self.drawn if all(link[name] == value for name, value in wanted.items())]


def inputs_inside(key: str, entry: dict[str, Any], kind: type[Any], links: Links) -> tuple[list[dict], list[Any]]:
    """A node's slots, linked, and its widgets' values."""
    slots: list[dict] = []
    values: list[Any] = []
    for name, declaration in inputs_of(kind).items():
        value, widget = entry["inputs"].get(name), is_widget(declaration)
        if widget:
            values.append(INPUTS[value.name][1] if isinstance(value, Outer) else value_of(entry, name, declaration))
            if not isinstance(value, Outer):
                continue
        slot = {"name": name, "type": declaration[0], "link": None, **({"widget": {"name": name}} if widget else {})}
        if isinstance(value, Outer):
            slot["link"] = links.add(BEFORE, list(INPUTS).index(value.name), int(key), len(slots), declaration[0])
        elif value is not None:
            slot["link"] = links.add(int(value[0]), value[1], int(key), len(slots), declaration[0])
        slots.append(slot)
    return slots, values


def definition(nodes: dict[str, type[Any]]) -> dict[str, Any]:
    prompt, links, inner = wiring(), Links(), []
    for order, (key, entry) in enumerate(prompt.items()):
        slots, values = inputs_inside(key, entry, nodes[entry["class_type"]], links)
        inner.append({"id": int(key), "type": entry["class_type"], "pos": [order % 3 * COLUMN, order // 3 * (300 + GAP)],
                      "size": [300, 260], "flags": {}, "order": order, "mode": 0, "inputs": slots,
                      "properties": {"Node name for S&R": entry["class_type"]}, "widgets_values": values})
    kinds = {name: nodes[prompt[key]["class_type"]].RETURN_TYPES[slot] for name, (key, slot) in OUTPUTS.items()}
    for slot, (name, (key, origin_slot)) in enumerate(OUTPUTS.items()):
        links.add(int(key), origin_slot, AFTER, slot, kinds[name])
    for entry in inner:
        kind = nodes[entry["type"]]
        entry["outputs"] = [{"name": name, "type": kind_, "links": links.numbers(origin_id=entry["id"], origin_slot=slot)}
                            for slot, (name, kind_) in enumerate(zip(outputs_of(kind), kind.RETURN_TYPES))]
    return {
        "id": identity(NAME), "version": 1, "revision": 0, "config": {}, "name": NAME,
        "state": {"lastGroupId": 0, "lastNodeId": len(inner), "lastLinkId": len(links.drawn), "lastRerouteId": 0},
        "inputNode": {"id": BEFORE, "bounding": [-300, 100, 140, 200]},
        "outputNode": {"id": AFTER, "bounding": [1100, 100, 120, 120]},
        "inputs": [{"id": identity(f"in/{name}"), "name": name, "type": declared[0], "pos": [-180, 120 + 20 * row],
                    "linkIds": links.numbers(origin_id=BEFORE, origin_slot=row)}
                   for row, (name, declared) in enumerate(INPUTS.items())],
        "outputs": [{"id": identity(f"out/{name}"), "name": name, "type": kinds[name], "pos": [1120, 120 + 20 * row],
                     "linkIds": links.numbers(target_id=AFTER, target_slot=row)} for row, name in enumerate(OUTPUTS)],
        "widgets": [], "nodes": inner, "groups": [], "links": links.drawn, "extra": {}, "category": "DreamMatcher",
        "description": "Gives your model the look of the subject in one photo: inversion, masks, matching and guidance.",
    }


def blueprint(nodes: dict[str, type[Any]]) -> dict[str, Any]:
    """A workflow of one node that holds the wiring."""
    subgraph = definition(nodes)
    outside = {
        "id": 100, "type": subgraph["id"], "pos": [0, 0], "size": [400, 420], "flags": {}, "order": 0, "mode": 0, "title": NAME,
        "inputs": [{"name": name, "type": declared[0], "link": None, **({"widget": {"name": name}} if name in WIDGETS else {})}
                   for name, declared in INPUTS.items()],
        "outputs": [{"name": entry["name"], "type": entry["type"], "links": []} for entry in subgraph["outputs"]],
        "properties": {"proxyWidgets": [["-1", name] for name in WIDGETS]},
        "widgets_values": [INPUTS[name][1] for name in WIDGETS],
    }
    return {"revision": 0, "last_node_id": 100, "last_link_id": 0, "nodes": [outside], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [subgraph]}, "extra": {}}


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(blueprint(Host(ROOT / "build" / "host").nodes), indent=1) + "\n", encoding="utf-8")
