"""Every node of ours bypassed (Ctrl+B) in every example: the graph goes on, or what to do instead is said."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bypassing import bypassed, switched
from safetensors.torch import save_file
from test_changes import vico_of

from harness.examples_transformers import NEWER
from harness.library import ROOT
from harness.workflow import to_prompt

#: those of edit models have one node of ours, whose model passes through
EXAMPLES = sorted(path for path in (ROOT / "example_workflows").glob("*.json") if path.stem not in NEWER)
OURS = ("DreamMatcher", "Toybox")
#: widgets that make the examples quick
QUICK = {"steps": 1, "count": 1, "effort": "quick", "batch": 1}
SAMPLED = 3  # steps: matching needs the one before


def workflow_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def own_nodes(workflow: dict[str, Any]) -> list[str]:
    return [str(node["id"]) for node in workflow["nodes"] if node["type"].startswith(OURS)]


CASES = [(path, number) for path in EXAMPLES for number in own_nodes(workflow_of(path))]


def name(case: Any) -> str:
    return case.stem.removeprefix("dreammatcher_") if isinstance(case, Path) else str(case)


@pytest.fixture(scope="module")
def files(host, pack, toybox):
    """The files that the examples load: a reference, and those that ViCo and Load Learned read."""
    inputs = {}
    reference = host.folder / "models" / "loras"
    reference.mkdir(parents=True, exist_ok=True)
    host.folder_paths.add_model_folder_path("loras", str(reference))
    save_file({"lora_unet_output_blocks_4_1_transformer_blocks_0_attn2_to_v.lora_down.weight": torch.ones(4, 96),
               "lora_unet_output_blocks_4_1_transformer_blocks_0_attn2_to_v.lora_up.weight": torch.zeros(64, 4)},
              reference / "bypass.safetensors")
    inputs["DreamMatcherLoadLearned"] = {"file": "bypass.safetensors"}
    path, _ = pack.module("dreammatcher.host.vico.files").save_vico(vico_of(pack, toybox), "bypass")
    inputs["DreamMatcherViCoLoad"] = {"file": path.name, "embedding": "(in the file)"}
    prompt = to_prompt(workflow_of(ROOT / "example_workflows" / "dreammatcher_11_save_reference_toybox.json"), host.nodes)
    save = next(number for number, entry in prompt.items() if entry["class_type"] == "DreamMatcherSaveReference")
    for entry in prompt.values():
        entry["inputs"].update({"steps": 1} if "steps" in entry["inputs"] else {})
    prompt[save]["inputs"]["filename_prefix"] = f"dreammatcher/bypass{uuid.uuid4().hex[:8]}"
    inputs["DreamMatcherLoadReference"] = {"file": Path(host.run(prompt).ui[save]["text"][0]).name}
    return inputs


def on_toybox(host, workflow: dict[str, Any], files: dict) -> dict[str, Any]:
    """The prompt of a workflow, quick, with Toybox in place of checkpoints that nobody has here."""
    prompt = to_prompt(workflow, host.nodes)
    draws = dict(subject=1, kind="cat", pose=1, background="grass")
    for entry in prompt.values():
        kind, inputs = entry["class_type"], entry["inputs"]
        inputs.update({name: value for name, value in QUICK.items() if name in inputs})
        if kind == "KSampler":
            inputs.update(steps=SAMPLED)
        if kind == "CheckpointLoaderSimple":
            entry.update(class_type="ToyboxLoader", inputs={"model": "UNet"})
        if kind == "LoadImage":
            entry.update(class_type="ToyboxReference", inputs=draws)
        if kind == "EmptyLatentImage":
            inputs.update(width=128, height=128)
        if "resolution" in inputs:
            inputs["resolution"] = 128
        if kind == "LoraLoader":
            inputs["lora_name"] = "bypass.safetensors"
        if kind == "DreamMatcherEvaluate":
            inputs.update(encoders="Toybox's judge")
        for widget in ("class_word", "initial_word", "subject_words"):
            if inputs.get(widget) in ("dog", "toy", "person", "sks dog", "<new1> dog"):
                inputs[widget] = "cat"
        for widget in ("prompt", "reference_prompt", "text"):
            if isinstance(inputs.get(widget), str):
                for word in ("dog", "toy", "face of person", "person"):
                    inputs[widget] = inputs[widget].replace(word, "cat")
        inputs.update(files.get(kind, {}))
    return prompt


def validated(host, prompt: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The outputs that the host would run, and what it refuses: node -> its errors."""
    if host.upstream:
        valid = host.loop.run_until_complete(host.execution.validate_prompt(uuid.uuid4().hex, prompt, None))
    else:
        valid = host.execution.validate_prompt(prompt)
    return valid[2], valid[3]


def lacking(host, prompt: dict[str, Any], whole: dict[str, Any]) -> set[tuple[str, str]]:
    """The (node, input) that has no value, among those that an output needs; ``whole`` is the prompt without a bypass.

    The host's own check says the same; of what comes to optional inputs, older ones see it when it runs. Of inputs that stand in
    for each other those count that ``whole`` has, and the node refuses to go without.
    """
    outputs = {number for number, entry in prompt.items() if getattr(host.nodes[entry["class_type"]], "OUTPUT_NODE", False)}
    needed, waiting = set(), set(outputs)
    while waiting:
        number = waiting.pop()
        needed.add(number)
        links = (value[0] for value in prompt[number]["inputs"].values() if isinstance(value, list))
        waiting |= {link for link in links if link in prompt} - needed
    kinds = {number: host.nodes[prompt[number]["class_type"]] for number in needed}
    missing = {(number, name) for number, kind in kinds.items() for name in kind.INPUT_TYPES()["required"]
               if name not in prompt[number]["inputs"]}
    once = {(number, name) for number, kind in kinds.items() for name in getattr(kind, "ONCE_CONNECTED", ())
            if name in whole[number]["inputs"] and name not in prompt[number]["inputs"]}
    errors = [(number, error) for number, of_node in validated(host, prompt)[1].items() for error in of_node["errors"]]
    ours = {number for number, error in errors if error["type"] == "custom_validation_failed"}
    assert ours <= {number for number, _ in once}
    assert not [error for _, error in errors if error["type"] not in ("required_input_missing", "custom_validation_failed")]
    refused = {(number, error["extra_info"]["input_name"]) for number, error in errors
               if error["type"] == "required_input_missing"}
    assert refused == missing if host.upstream else refused <= missing
    assert not host.upstream or {number for number, _ in once} <= ours | {number for number, _ in refused}
    return missing | once


def without_controlnet(prompt: dict[str, Any]) -> dict[str, Any]:
    """There is no ControlNet here: what it was put on goes on without."""
    for number in [one for one, entry in prompt.items() if entry["class_type"] == "ControlNetApplyAdvanced"]:
        inputs = prompt.pop(number)["inputs"]
        for entry in prompt.values():
            for name, value in entry["inputs"].items():
                if isinstance(value, list) and value[0] == number:
                    entry["inputs"][name] = inputs[("positive", "negative")[value[1]]]
    return {number: entry for number, entry in prompt.items() if entry["class_type"] != "ControlNetLoader"}


@pytest.mark.parametrize("widgets_pass", [False, True], ids=["P", "U"])
@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_what_the_host_refuses_after_a_bypass_is_explained(host, pack, files, path, widgets_pass):
    gaps = pack.module("dreammatcher.host.graph.bypass").gaps
    kinds = pack.module("nodes").NODE_CLASS_MAPPINGS
    workflow = workflow_of(path)
    whole = without_controlnet(on_toybox(host, workflow, files))
    assert not validated(host, whole)[1]
    for number in own_nodes(workflow):
        prompt = bypassed(whole, number, host.nodes, widgets_pass)
        missing = lacking(host, prompt, whole)
        sent = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": switched(workflow, number)}}}
        said = gaps(sent, kinds, host.nodes)
        assert len(said) == bool(missing), (number, missing, said)
        for _, name in missing:
            assert f"{name} of " in said[0].text, (number, missing, said)
        if missing:
            kind = kinds[next(node["type"] for node in workflow["nodes"] if str(node["id"]) == number)]
            assert said[0].text.startswith(f"{kind.TITLE} is bypassed") and said[0].node == number
            assert not {name for other, name in missing if prompt[other]["class_type"].startswith("DreamMatcher")} - {
                "positive", "negative", "training_set", "reference", "references", "image", "images", "model", "clip", "vae"}


def run_valid(host, prompt: dict[str, Any], executor=None):
    """Runs the outputs that the host accepts, as its server does: where an ``executor`` is given, after what it ran before."""
    outputs, _ = validated(host, prompt)
    if not outputs:
        return None
    executor = executor or host.executor()
    executor.execute(prompt, uuid.uuid4().hex, {"client_id": "bypass"}, outputs)
    error = next((data["exception_message"] for event, data in executor.status_messages if event == "execution_error"), "")
    ui = executor.history_result["outputs"] if host.upstream else executor.outputs_ui
    return error, ui


@pytest.fixture
def quickly(pack, monkeypatch):
    """Few steps. What a training takes, most of so short a one, has tests of its own."""
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, chosen, *_, **__: chosen)
    easy = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setattr(easy, "BUDGETS", {"quick": easy.TrainingBudget(1, 1)})
    monkeypatch.setattr(pack.module("dreammatcher.host.matching.easy"), "STEPS", 2)


RUN = [(path, number) for path, number in CASES if "toybox" in path.stem]


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("path", sorted({path for path, _ in RUN}), ids=name)
def test_what_the_host_accepts_after_a_bypass_runs(host, files, path):
    workflow = workflow_of(path)
    whole = on_toybox(host, workflow, files)
    executor = host.executor()  # an artist bypasses one node after the other, and what does not hang on it is there already
    for number in own_nodes(workflow):
        prompt = bypassed(whole, number, host.nodes, host.upstream)
        done = run_valid(host, prompt, executor)
        if done is not None and done[0]:
            names = {name for _, name in lacking(host, prompt, whole)}
            told = "; connect" in done[0] or (not host.upstream and any(name in done[0] for name in names))
            assert told, (number, whole[number]["class_type"], done[0])


def matched(host):
    """The example with every step in its own node, quick."""
    prompt = on_toybox(host, workflow_of(ROOT / "example_workflows" / "dreammatcher_04_toybox.json"), {})
    return prompt, {entry["class_type"]: number for number, entry in prompt.items()}


def pixels(host, done, prompt, prefix: str) -> np.ndarray:
    number = next(one for one, entry in prompt.items() if entry["inputs"].get("filename_prefix") == prefix)
    return np.asarray(host.images(SimpleNamespace(ui=done[1]), number)[0])


@pytest.mark.parametrize("kind, notes", [
    ("DreamMatcherApply", ["model: there is nothing to guide towards"]),
    ("DreamMatcherInvert", ["reference: nothing is connected, or Invert Reference (DreamMatcher) or another node in front is",
                            "model: there is nothing to guide towards"]),
    ("DreamMatcherMask", ["mask: nothing is connected, or Mask (DreamMatcher) is", "model: there is nothing to guide towards"]),
])
def test_a_bypassed_part_of_the_match_leaves_the_plain_picture_and_says_so_once(host, caplog, kind, notes):
    prompt, numbers = matched(host)
    prompt = bypassed(prompt, numbers[kind], host.nodes, host.upstream)
    caplog.clear()
    done = run_valid(host, prompt)
    assert done[0] == ""
    assert (pixels(host, done, prompt, "dreammatcher/plain") == pixels(host, done, prompt, "dreammatcher/matched")).all()
    said = [record.getMessage() for record in caplog.records if "DreamMatcher:" in record.getMessage()]
    assert len(said) == len(notes) and all(any(note in line for line in said) for note in notes), said
    shown, = done[1][numbers["DreamMatcherPreview"]]["text"]
    reason = "there is no trace" if kind == "DreamMatcherApply" else notes[0]
    assert shown.startswith("Nothing was matched: ") and reason in shown


def test_a_bypassed_guidance_leaves_the_match(host):
    prompt, numbers = matched(host)
    prompt = bypassed(prompt, numbers["DreamMatcherGuidance"], host.nodes, host.upstream)
    done = run_valid(host, prompt)
    assert done[0] == "" and "text" not in done[1][numbers["DreamMatcherPreview"]]


def easy_graph(host, strength: float | None):
    prompt = on_toybox(host, workflow_of(ROOT / "example_workflows" / "dreammatcher_01_easy_toybox.json"), {})
    number = next(one for one, entry in prompt.items() if entry["class_type"] == "DreamMatcherEasy")
    if strength is None:
        prompt[number]["inputs"].pop("strength")
    else:
        prompt[number]["inputs"]["strength"] = strength
    return prompt, number


@pytest.mark.usefixtures("quickly")
def test_easy_at_strength_0_is_the_plain_picture_bit_for_bit_and_at_1_what_it_was(host):
    drawn = {}
    for strength in (None, 1.0, 0.5, 0.0):
        prompt, number = easy_graph(host, strength)
        done = run_valid(host, prompt)
        assert done[0] == ""
        drawn[strength] = pixels(host, done, prompt, "dreammatcher/easy")
        if strength == 0.0:
            preview = next(one for one, entry in prompt.items() if entry["class_type"] == "DreamMatcherPreview")
            assert done[1][preview]["text"] == ["Nothing was matched: strength is 0."]
    prompt, number = easy_graph(host, 1.0)
    plain = bypassed(prompt, number, host.nodes, host.upstream)
    words = {"positive": prompt[number]["inputs"]["prompt"], "negative": prompt[number]["inputs"]["negative"]}
    sampler = next(one for one, entry in plain.items() if entry["class_type"] == "KSampler")
    for name, text in words.items():
        plain[name] = {"class_type": "CLIPTextEncode", "inputs": {"clip": prompt[number]["inputs"]["clip"], "text": text}}
        plain[sampler]["inputs"][name] = [name, 0]
    done = run_valid(host, plain)
    assert (drawn[0.0] == pixels(host, done, plain, "dreammatcher/easy")).all()
    assert (drawn[None] == drawn[1.0]).all()
    assert len({picture.tobytes() for picture in drawn.values()}) == 3


def test_a_bypassed_easy_is_told_to_use_strength_0(host, pack):
    path = ROOT / "example_workflows" / "dreammatcher_01_easy_toybox.json"
    whole, number = easy_graph(host, 1.0)
    prompt = bypassed(whole, number, host.nodes, host.upstream)
    assert {name for _, name in lacking(host, prompt, whole)} == {"positive", "negative"}
    sent = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": switched(workflow_of(path), number)}}}
    gap, = pack.module("dreammatcher.host.graph.bypass").gaps(sent, pack.module("nodes").NODE_CLASS_MAPPINGS, host.nodes)
    assert "nothing comes to positive of KSampler, negative of KSampler: it" in gap.text and "set its strength to 0" in gap.text


def test_prompts_without_a_workflow_and_workflows_without_a_bypass_are_left_alone(pack, host):
    gaps, kinds = pack.module("dreammatcher.host.graph.bypass").gaps, pack.module("nodes").NODE_CLASS_MAPPINGS
    prompt, _ = easy_graph(host, 1.0)
    workflow = workflow_of(ROOT / "example_workflows" / "dreammatcher_01_easy_toybox.json")
    for extra in ({}, {"extra_pnginfo": None}, {"extra_pnginfo": {"workflow": workflow}}, {"extra_pnginfo": {"workflow": {}}}):
        assert gaps({"prompt": prompt, "extra_data": extra}, kinds, host.nodes) == []
    assert gaps({}, kinds, host.nodes) == []


def test_a_bypass_inside_of_a_subgraph_is_seen_by_the_number_that_the_prompt_has(pack, host):
    gaps, kinds = pack.module("dreammatcher.host.graph.bypass").gaps, pack.module("nodes").NODE_CLASS_MAPPINGS
    inner = {"id": "sub", "nodes": [{"id": 3, "type": "DreamMatcherSubject", "mode": 4, "inputs": []},
                                    {"id": 4, "type": "Reroute", "mode": 0, "inputs": [{"name": "", "link": 1}]},
                                    {"id": 5, "type": "KSampler", "mode": 0, "inputs": [{"name": "positive", "link": 2}]}],
             "links": [{"origin_id": 3, "origin_slot": 0, "target_id": 4, "target_slot": 0},
                       {"origin_id": 4, "origin_slot": 0, "target_id": 5, "target_slot": 0}]}
    workflow = {"nodes": [{"id": 7, "type": "sub", "mode": 0}], "links": [], "definitions": {"subgraphs": [inner]}}
    sent = {"prompt": {"7:5": {"class_type": "KSampler", "inputs": {}}}, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    gap, = gaps(sent, kinds, host.nodes)
    assert gap.node == "7:3" and "positive of KSampler" in gap.text and "CLIP Text Encode" in gap.text


@pytest.mark.parametrize("kind, given, said", [
    ("DreamMatcherSaveReference", {"filename_prefix": "a"}, "reference: nothing is connected"),
    ("DreamMatcherSaveLearned", {"name": "a"}, "learned: nothing is connected"),
    ("DreamMatcherViCoSave", {"name": "a"}, "vico: nothing is connected"),
    ("DreamMatcherSeFiSave", {"name": "a"}, "sefi: nothing is connected"),
    ("DreamMatcherScoreSheet", {"name_1": "a"}, "scores_1: nothing is connected"),
])
def test_an_output_node_without_its_input_says_so_and_writes_nothing(host, kind, given, said):
    result = host.run({"1": {"class_type": kind, "inputs": given}})
    assert result.success and result.ui["1"]["text"][0].startswith(said)


def test_one_of_two_combined_references_is_taken_alone(host, pack, toybox, files, caplog):
    load = pack.module("dreammatcher.host.matching.files").load_reference
    reference = load(files["DreamMatcherLoadReference"]["file"])
    combine = host.nodes["DreamMatcherCombine"]().combine
    combination, = combine(None, reference, 1.0, 0.5)
    member, = combination.members
    assert member.reference is reference and member.weight == 0.5
    assert "reference_1: nothing is connected" in caplog.text and "the other is taken alone" in caplog.text
    assert combine(None, None, 1.0, 1.0) == (None,)
    assert "reference_1 and reference_2: nothing is connected" in caplog.text


def test_workflows_saved_before_inputs_were_optional_give_the_same_prompt(host):
    """Older files list sockets in the old order; links and sockets are found by name, widgets by position."""
    for path in EXAMPLES:
        workflow = workflow_of(path)
        wanted = to_prompt(workflow, host.nodes)
        for node in workflow["nodes"]:
            order = sorted(range(len(node.get("inputs") or ())), key=lambda slot: node["inputs"][slot]["name"])
            node["inputs"] = [node["inputs"][slot] for slot in order]
            for link in workflow["links"]:
                if link[3] == node["id"]:
                    link[4] = order.index(link[4])
        assert to_prompt(workflow, host.nodes) == wanted, path.name
