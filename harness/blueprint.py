"""``python -m harness.blueprint``: writes subgraphs/DreamMatcher.json, the standard wiring as one node that can be opened.

ComfyUI of late 2025 and newer offers it in the node library; older ones do not look into the folder.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from .boot import Host
from .examples import node
from .library import ROOT
from .workflow import COLUMN, ROW, inputs_of, is_widget, value_of

FILE = ROOT / "subgraphs" / "DreamMatcher.json"
NAME = "DreamMatcher"
#: outer inputs: type, and default of those that are widgets
INPUTS = {"model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",), "reference": ("IMAGE",),
          "reference_prompt": ("STRING", "a photo of a dog"), "prompt": ("STRING", "a photo of a dog on the beach"),
          "negative": ("STRING", ""), "subject_words": ("STRING", "dog")}
OUTPUTS = {"model": ["8", 0], "positive": ["3", 0], "negative": ["4", 0], "trace": ["7", 1]}


def outer(name: str) -> dict[str, str]:
    """An inner input that comes from outside."""
    return {"outer": name}


def wiring() -> dict[str, Any]:
    words, model, clip = outer("subject_words"), outer("model"), outer("clip")
    return {
        "1": node("VAEEncode", pixels=outer("reference"), vae=outer("vae")),
        "2": node("DreamMatcherSubject", clip=clip, prompt=outer("reference_prompt"), subject_words=words),
        "3": node("DreamMatcherSubject", clip=clip, prompt=outer("prompt"), subject_words=words),
        "4": node("CLIPTextEncode", clip=clip, text=outer("negative")),
        "5": node("DreamMatcherInvert", model=model, reference=["1", 0], positive=["2", 0], negative=["4", 0]),
        "6": node("DreamMatcherMask", reference_subject=["2", 1], target_subject=["3", 1]),
        "7": node("DreamMatcherApply", model=model, reference=["5", 0], mask=["6", 0]),
        "8": node("DreamMatcherGuidance", model=["7", 0]),
    }


def identity(of: str) -> str:
    """The same at every writing."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dreammatcher/{of}"))


def blueprint(nodes: dict[str, type]) -> dict[str, Any]:
    prompt, number = wiring(), 100
    links: list[dict[str, Any]] = []
    ends: dict[str, list[int]] = {name: [] for name in (*INPUTS, *(f"out {name}" for name in OUTPUTS))}
    leaving: dict[tuple[str, int], list[int]] = {}

    def link(origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> int:
        links.append({"id": len(links) + 1, "origin_id": origin, "origin_slot": origin_slot, "target_id": target,
                      "target_slot": target_slot, "type": kind})
        return len(links)

    inner = []
    for order, (key, entry) in enumerate(prompt.items()):
        declared, slots, values = inputs_of(nodes[entry["class_type"]]), [], []
        for name, declaration in declared.items():
            value, widget = entry["inputs"].get(name), is_widget(declaration)
            kind = "COMBO" if isinstance(declaration[0], (list, tuple)) else declaration[0]
            if widget:
                values.append(INPUTS[value["outer"]][1] if isinstance(value, dict) else value_of(entry, name, declaration))
            if widget and not isinstance(value, dict):
                continue
            slot = {"name": name, "type": kind, "link": None, **({"widget": {"name": name}} if widget else {})}
            if isinstance(value, dict):
                slot["link"] = link(-10, list(INPUTS).index(value["outer"]), int(key), len(slots), kind)
                ends[value["outer"]].append(slot["link"])
            elif value is not None:
                slot["link"] = link(int(value[0]), value[1], int(key), len(slots), kind)
                leaving.setdefault((value[0], value[1]), []).append(slot["link"])
            slots.append(slot)
        inner.append({"id": int(key), "type": entry["class_type"], "pos": [(order % 3) * COLUMN, (order // 3) * (300 + ROW)],
                      "size": [300, 260], "flags": {}, "order": order, "mode": 0, "inputs": slots, "outputs": [],
                      "properties": {"Node name for S&R": entry["class_type"]}, "widgets_values": values})
    for slot, (name, (key, origin_slot)) in enumerate(OUTPUTS.items()):
        kind = nodes[prompt[key]["class_type"]].RETURN_TYPES[origin_slot]
        made = link(int(key), origin_slot, -20, slot, kind)
        ends[f"out {name}"].append(made)
        leaving.setdefault((key, origin_slot), []).append(made)
    for entry in inner:
        kind = nodes[entry["type"]]
        names = getattr(kind, "RETURN_NAMES", None) or kind.RETURN_TYPES
        entry["outputs"] = [{"name": name, "type": own, "links": leaving.get((str(entry["id"]), slot), [])}
                            for slot, (name, own) in enumerate(zip(names, kind.RETURN_TYPES))]
    kinds = {name: nodes[prompt[key]["class_type"]].RETURN_TYPES[slot] for name, (key, slot) in OUTPUTS.items()}
    definition = {
        "id": identity(NAME), "version": 1, "revision": 0, "config": {}, "name": NAME,
        "state": {"lastGroupId": 0, "lastNodeId": len(inner), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [-300, 100, 140, 200]}, "outputNode": {"id": -20, "bounding": [1100, 100, 120, 120]},
        "inputs": [{"id": identity(f"in/{name}"), "name": name, "type": kind[0], "linkIds": ends[name],
                    "pos": [-180, 120 + 20 * row]} for row, (name, kind) in enumerate(INPUTS.items())],
        "outputs": [{"id": identity(f"out/{name}"), "name": name, "type": kinds[name], "linkIds": ends[f"out {name}"],
                     "pos": [1120, 120 + 20 * row]} for row, name in enumerate(OUTPUTS)],
        "widgets": [], "nodes": inner, "groups": [], "links": links, "extra": {}, "category": "DreamMatcher",
        "description": "Gives your model the look of the subject in one photo: inversion, masks, matching and guidance.",
    }
    widgets = [name for name, kind in INPUTS.items() if len(kind) > 1]
    outside = {
        "id": number, "type": identity(NAME), "pos": [0, 0], "size": [400, 420], "flags": {}, "order": 0, "mode": 0,
        "title": NAME,
        "inputs": [{"name": name, "type": kind[0], "link": None, **({"widget": {"name": name}} if name in widgets else {})}
                   for name, kind in INPUTS.items()],
        "outputs": [{"name": name, "type": kinds[name], "links": []} for name in OUTPUTS],
        "properties": {"proxyWidgets": [["-1", name] for name in widgets]},
        "widgets_values": [INPUTS[name][1] for name in widgets],
    }
    return {"revision": 0, "last_node_id": number, "last_link_id": 0, "nodes": [outside], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [definition]}, "extra": {}}


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(blueprint(Host(ROOT / "build" / "host").nodes), indent=1) + "\n", encoding="utf-8")
