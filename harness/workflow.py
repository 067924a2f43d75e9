"""Converts between the two forms of a ComfyUI graph: the API prompt that the executor runs and the workflow people open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEEDS = {"seed", "noise_seed"}
WIDTH, GAP = 300, 60
COLUMN = WIDTH + 40
#: what a node shows besides its widgets, once a file is chosen or a run has ended: width of the node, height of that part
SHOWN = {"LoadImage": (WIDTH, 300), "SaveImage": (WIDTH, 320), "DreamMatcherPreview": (520, 760),
         "KSampler": (WIDTH, 240), "PreviewImage": (WIDTH, 320), "DreamMatcherSubject": (WIDTH, 90),
         "DreamMatcherSubjects": (WIDTH, 130), "DreamMatcherEasy": (WIDTH, 130), "DreamMatcherApply": (WIDTH, 260),
         "DreamMatcherSeFiTrain": (WIDTH, 260), "DreamMatcherEvaluate": (WIDTH, 180)}


def inputs_of(node: type[Any]) -> dict[str, tuple]:
    """Declared inputs in the order in which the front end makes their widgets."""
    declared = node.INPUT_TYPES()
    return {**declared.get("required", {}), **declared.get("optional", {})}


def outputs_of(node: type[Any]) -> tuple[str, ...]:
    """Names of a node's outputs: their types where it gives none."""
    return getattr(node, "RETURN_NAMES", None) or node.RETURN_TYPES


def is_widget(declaration: tuple) -> bool:
    return isinstance(declaration[0], (list, tuple)) or declaration[0] in WIDGETS


def default_of(declaration: tuple) -> Any:
    return declaration[1].get("default") if len(declaration) > 1 else None


def value_of(entry: dict[str, Any], name: str, declaration: tuple) -> Any:
    """A widget's value in a prompt's node: its default where the prompt leaves it out."""
    return entry["inputs"].get(name, default_of(declaration))


def to_prompt(workflow: dict[str, Any], nodes: dict[str, type]) -> dict[str, Any]:
    """The API prompt of a workflow. Widgets are stored by position: they are read in the declared order."""
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for entry in workflow["nodes"]:
        if entry["type"] not in nodes:
            continue  # notes
        values = iter(entry.get("widgets_values", []))
        connected = {slot["name"]: links[slot["link"]] for slot in entry.get("inputs", []) if slot.get("link") is not None}
        inputs: dict[str, Any] = {}
        for name, declaration in inputs_of(nodes[entry["type"]]).items():
            if is_widget(declaration):
                inputs[name] = next(values, default_of(declaration))  # the default where this widget was made later
                if name in SEEDS:
                    next(values, None)  # control after generate
        prompt[str(entry["id"])] = {
            "class_type": entry["type"], "inputs": {**inputs, **{name: list(link) for name, link in connected.items()}}}
    return prompt


def _widen_columns(entries: list[dict[str, Any]]) -> None:
    """Moves columns to the right of those that hold a wide node."""
    columns = sorted({entry["pos"][0] for entry in entries})
    left = 0
    for column in columns:
        members = [entry for entry in entries if entry["pos"][0] == column]
        for entry in members:
            entry["pos"] = [left, entry["pos"][1]]
        left += max(entry["size"][0] for entry in members) + COLUMN - WIDTH


def to_workflow(prompt: dict[str, Any], nodes: dict[str, type[Any]], notes: Sequence[str] = ()) -> dict[str, Any]:
    """A workflow that opens in the front end: one column for each distance from the sources, notes on the left."""
    depth: dict[str, int] = {}

    def depth_of(number: str) -> int:
        if number not in depth:
            sources = [value[0] for value in prompt[number]["inputs"].values() if isinstance(value, list)]
            depth[number] = 1 + max(map(depth_of, sources), default=-1)
        return depth[number]

    links: list[list[Any]] = []
    entries: dict[str, dict[str, Any]] = {}
    heights: dict[int, int] = {}
    for order, number in enumerate(sorted(prompt, key=lambda n: (depth_of(n), int(n)))):
        kind = nodes[prompt[number]["class_type"]]
        declared = inputs_of(kind)
        widgets = [name for name, declaration in declared.items() if is_widget(declaration)]
        values: list[Any] = []
        for name in widgets:
            values += [value_of(prompt[number], name, declared[name]), *(["fixed"] if name in SEEDS else [])]
        slots = [name for name, declaration in declared.items() if not is_widget(declaration)]
        text_rows = sum(3 for name in widgets if declared[name][1:] and declared[name][1].get("multiline"))
        width, shown = SHOWN.get(prompt[number]["class_type"], (WIDTH, 0))
        height = shown + 40 + 22 * max(len(slots), len(kind.RETURN_TYPES)) + 34 * (len(values) + text_rows)
        column = depth_of(number)
        top = heights.get(column, 0)
        heights[column] = top + height + GAP
        entries[number] = {
            "id": int(number), "type": prompt[number]["class_type"], "pos": [column * COLUMN, top], "size": [width, height],
            "flags": {}, "order": order, "mode": 0,
            "inputs": [{"name": name, "type": declared[name][0], "link": None} for name in slots],
            "outputs": [{"name": name, "type": kind_, "links": [], "slot_index": slot}
                        for slot, (name, kind_) in enumerate(zip(outputs_of(kind), kind.RETURN_TYPES))],
            "properties": {"Node name for S&R": prompt[number]["class_type"]}, "widgets_values": values,
        }
    _widen_columns(list(entries.values()))
    for number, entry in entries.items():
        for slot, wanted in enumerate(entry["inputs"]):
            value = prompt[number]["inputs"].get(wanted["name"])
            if isinstance(value, list):
                link = len(links) + 1
                links.append([link, int(value[0]), value[1], int(number), slot, wanted["type"]])
                wanted["link"] = link
                entries[value[0]]["outputs"][value[1]]["links"].append(link)
    last = max(map(int, prompt))
    for index, text in enumerate(notes):
        last += 1
        entries[str(last)] = {
            "id": last, "type": "Note", "pos": [-COLUMN, index * 240], "size": [300, 200], "flags": {}, "order": 0, "mode": 0,
            "inputs": [], "outputs": [], "properties": {"text": ""}, "widgets_values": [text], "color": "#432", "bgcolor": "#653"}
    return {"last_node_id": last, "last_link_id": len(links), "nodes": list(entries.values()), "links": links,
            "groups": [], "config": {}, "extra": {}, "version": 0.4}
