"""Every node and every shipped workflow through the real executor, and what users are told when something is wrong."""

from __future__ import annotations

import base64
import copy
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from harness.examples import EXAMPLES, easy, full_control, node, save_and_load
from harness.examples_transformers import NEWER
from harness.library import ROOT
from harness.workflow import inputs_of, to_prompt, to_workflow

OURS = ("DreamMatcherInvert", "DreamMatcherSubject", "DreamMatcherSubjects", "DreamMatcherMask", "DreamMatcherFeatures",
        "DreamMatcherApply",
        "DreamMatcherCombine", "DreamMatcherGuidance", "DreamMatcherPreview", "DreamMatcherSaveReference",
        "DreamMatcherLoadReference", "DreamMatcherEasy", "DreamMatcherTrainingSet", "DreamMatcherDreamBooth",
        "DreamMatcherTextualInversion", "DreamMatcherCustomDiffusion", "DreamMatcherSaveLearned", "DreamMatcherApplyLearned",
        "DreamMatcherLoadLearned", "DreamMatcherPriorSet", "DreamMatcherTrainingOptions", "DreamMatcherTrainingDetails",
        "DreamMatcherLearn", "DreamMatcherViCoTrain", "DreamMatcherViCoApply", "DreamMatcherViCoMasks", "DreamMatcherViCoSave",
        "DreamMatcherViCoLoad", "DreamMatcherTrainingJob", "DreamMatcherSeFiTrain", "DreamMatcherSeFiPrompt",
        "DreamMatcherSeFiApply", "DreamMatcherSeFiLoss", "DreamMatcherSeFiSave", "DreamMatcherSeFiLoad", "DreamMatcherEvaluate",
        "DreamMatcherScoreSheet", "DreamMatcherLock", "ToyboxLoader", "ToyboxReference")
ALL = {**EXAMPLES, **NEWER}


@pytest.fixture(autouse=True)
def short_lessons(pack, monkeypatch):
    easy = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setitem(easy.BUDGETS, "usual", easy.TrainingBudget(6, 2))


def quick(prompt: dict, **changes) -> dict:
    """The same graph with few steps; ``changes`` are inputs by class, e.g. DreamMatcherApply={...}."""
    prompt = copy.deepcopy(prompt)
    for entry in prompt.values():
        if entry["class_type"] in ("KSampler", "DreamMatcherInvert", "DreamMatcherDreamBooth", "DreamMatcherViCoTrain",
                                   "DreamMatcherSeFiTrain"):
            entry["inputs"]["steps"] = 6
        if entry["class_type"] == "DreamMatcherPriorSet":
            entry["inputs"].update(steps=2, count=2)
        if entry["class_type"] in ("KSampler",):
            entry["inputs"]["cfg"] = 7.5
        entry["inputs"].update(changes.get(entry["class_type"], {}))
    return prompt


def fails(host, prompt: dict, words: str) -> None:
    result = host.run(prompt)
    assert not result.success and words in result.error(), result.error()


@pytest.mark.parametrize("name", OURS)
def test_every_input_and_output_explains_itself(host, name):
    kind = host.nodes[name]
    assert kind.DESCRIPTION and kind.CATEGORY.startswith("DreamMatcher")
    for declared, declaration in inputs_of(kind).items():
        assert declaration[1]["tooltip"], declared
    assert len(kind.OUTPUT_TOOLTIPS) == len(kind.RETURN_TYPES)


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_shipped_workflow_is_what_its_prompt_says_and_runs(host, pack, monkeypatch, name):
    easy = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setattr(easy, "BUDGETS", dict.fromkeys(easy.BUDGETS, easy.TrainingBudget(steps=6, prior=2)))
    workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text())
    make, notes = ALL[name]
    if name in NEWER and not host.upstream:
        pytest.skip("this host does not know edit models and transformers")
    if host.upstream == (name in NEWER):  # the layout follows the declarations of the oldest host that has the nodes
        assert workflow == json.loads(json.dumps(to_workflow(make(), host.nodes, notes))), "run make examples"
    prompt = to_prompt(workflow, host.nodes)
    if host.upstream:  # newer hosts' own nodes have inputs that older ones have not
        assert {number: {**entry, "inputs": {name: prompt[number]["inputs"].get(name) for name in entry["inputs"]}}
                for number, entry in make().items()} == make()
    else:
        assert prompt == make()
    if "toybox" not in name:
        put_files_for(host, prompt)
        assert host.check(prompt), "the host must take the graph once the user's files are there"
        return
    if "7" in prompt and prompt["7"]["class_type"] == "DreamMatcherLoadReference":
        saved = host.run(quick(save_and_load())).ui["15"]["text"][0]
        prompt["7"]["inputs"]["file"] = Path(saved).name
    result = host.run(quick(prompt))
    assert result.success, result.error()


def put_files_for(host, prompt: dict) -> None:
    """Empty files of the names that a prompt's loaders ask for, and the judge that is there in place of encoders."""
    folders = {"ckpt_name": "checkpoints", "lora_name": "loras", "control_net_name": "controlnet", "vae_name": "vae",
               "unet_name": "diffusion_models", "clip_name": "text_encoders"}
    for entry in prompt.values():
        for name, folder in folders.items():
            if name in entry["inputs"]:
                file = Path(host.folder_paths.get_folder_paths(folder)[0]) / entry["inputs"][name]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        if entry["class_type"] == "DreamMatcherViCoLoad":
            folder = host.folder / "output" / "vico"
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("file", "embedding"):
                (folder / entry["inputs"][name]).touch()
        if entry["class_type"] == "DreamMatcherEvaluate":
            entry["inputs"]["encoders"] = "Toybox's judge"
        if entry["class_type"] == "DreamMatcherLoadLearned":
            file = Path(host.folder_paths.get_folder_paths("loras")[0]) / entry["inputs"]["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        if entry["class_type"] == "LoadImage":
            folder = Path(host.folder_paths.get_input_directory())
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64)).save(folder / entry["inputs"]["image"])


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_workflow_has_a_note_and_a_thumbnail(name):
    workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text())
    assert any(node["type"] == "Note" and len(node["widgets_values"][0]) > 60 for node in workflow["nodes"])
    with Image.open(ROOT / "example_workflows" / f"{name}.jpg") as picture:
        assert min(picture.size) >= 200


def test_no_file_of_the_examples_is_left_over():
    assert {path.stem for path in (ROOT / "example_workflows").iterdir()} == set(ALL)


def test_the_matched_picture_differs_from_the_plain_one_and_the_preview_shows_six_panels(host):
    result = host.run(quick(full_control()))
    plain, matched = (host.images(result, number)[0] for number in ("15", "16"))
    strip = host.images(result, "17")[0]
    assert plain.size == matched.size == (128, 128) and plain.tobytes() != matched.tobytes()
    assert strip.width > 3 * 128 and strip.height > 2 * 128


def test_the_preview_gives_the_inspector_pictures_and_every_step_as_small_files(host):
    prompt = quick(full_control())
    prompt["10"]["inputs"]["batch_size"] = 2
    result = host.run(prompt)
    run, = result.ui["17"]["dreammatcher"]
    opened = {kind: [Image.open(host.file(entry)) for entry in run[kind]] for kind in ("results", "references", "plain")}
    assert [len(opened[kind]) for kind in ("results", "references", "plain")] == [2, 1, 2]
    for shown, saved in ((opened["results"][0], host.images(result, "16")[0]),
                         (opened["plain"][1], host.images(result, "15")[1])):
        assert max(high for _, high in ImageChops.difference(shown, saved).getextrema()) <= 1
    sigmas = [step["sigma"] for step in run["steps"]]
    assert len(sigmas) > 2 and sigmas == sorted(sigmas, reverse=True)
    for step in run["steps"]:
        file = host.file(step)
        items = json.loads(file.read_text())
        assert len(items) == 2 and items[0]["size"] == [16, 16] and file.stat().st_size < 20_000
        assert items[0]["source"] != items[1]["source"], "each picture has its own match"


class Connected:
    """The part of the host's server that the live preview needs."""

    client_id = "somebody"

    def __init__(self):
        self.sent = []

    def send_sync(self, event, data, sid=None):
        self.sent.append((event, data, sid))


@pytest.mark.parametrize("kind", ["foreground", "trusted"])
def test_the_live_preview_sends_pictures_while_sampling_and_changes_none(host, pack, monkeypatch, kind):
    server, prompt = Connected(), quick(full_control())
    without = host.images(host.run(prompt), "16")[0].tobytes()
    monkeypatch.setattr(pack.module("dreammatcher.host.matching.live"), "connected", lambda: server)
    assert host.images(host.run(prompt), "16")[0].tobytes() == without and not server.sent, "off sends nothing"
    prompt["9"]["inputs"]["live_preview"] = kind
    assert host.images(host.run(prompt), "16")[0].tobytes() == without
    assert 1 <= len(server.sent) <= prompt["12"]["inputs"]["steps"] / 4 + 1
    for event, data, sid in server.sent:
        assert (event, sid, data["node"]) == ("dreammatcher.live", "somebody", "9")
        picture = Image.open(io.BytesIO(base64.b64decode(data["image"].removeprefix("data:image/jpeg;base64,"))))
        assert picture.size == (256, 256) and kind in data["text"]


def test_removing_the_node_gives_the_picture_it_never_touched(host):
    executor = host.executor()
    prompt = quick(full_control())
    without = {number: entry for number, entry in prompt.items() if number in ("1", "5", "6", "10", "11", "13", "15")}
    before = host.images(host.run(without, executor), "15")[0].tobytes()
    assert host.run(prompt, executor).success
    again = copy.deepcopy(without)
    again["11"]["inputs"]["seed"] = 77
    assert host.images(host.run(again, executor), "15")[0].tobytes() != before
    assert host.images(host.run(without, executor), "15")[0].tobytes() == before


def test_the_same_prompt_twice_is_bit_identical(host):
    first, second = (host.images(host.run(quick(full_control())), "16")[0].tobytes() for _ in range(2))
    assert first == second


def test_a_saved_reference_samples_the_same_picture_after_loading(host):
    prompt = quick(save_and_load())
    prompt["9"]["inputs"]["reference"] = ["7", 0]
    prompt["15"]["inputs"]["reference"] = ["7", 0]
    result = host.run(prompt)
    name = result.ui["15"]["text"][0].replace("\\", "/").rsplit("/", 1)[1]
    loaded = copy.deepcopy(prompt)
    del loaded["15"], loaded["18"]
    loaded["7"] = node("DreamMatcherLoadReference", file=name)
    again = host.run(loaded)
    assert again.success, again.error()
    assert host.images(again, "16")[0].tobytes() == host.images(result, "16")[0].tobytes()


def test_a_painted_mask_takes_the_place_of_the_words(host):
    prompt = quick(full_control())
    prompt["8"]["inputs"].update(reference_mask=["2", 1], target_mask=["2", 1], binarise="otsu")
    result = host.run(prompt)
    assert result.success, result.error()
    assert host.images(result, "16")[0].tobytes() != host.images(host.run(quick(full_control())), "16")[0].tobytes()


def test_a_lora_like_patch_and_weighted_words_compose(host):
    prompt = quick(full_control(), DreamMatcherSubject={"prompt": "a (photo:1.2) of a (robot:1.3) in the snow"})
    prompt["20"] = node("FreeU_V2", model=["1", 0], b1=1.1, b2=1.1, s1=0.9, s2=0.2)
    prompt["9"]["inputs"]["model"] = ["20", 0]
    result = host.run(prompt)
    assert result.success, result.error()


@pytest.mark.parametrize("changes, words", [
    ({"DreamMatcherSubject": {"subject_words": " , ", "prompt": "on the, 1 (of):1.2"}},
     "subject_words: none given, and the prompt has no words to take"),
    ({"DreamMatcherApply": {"start": 0.9, "end": 0.3}}, "start: 0.9 is not before end: 0.3"),
    ({"DreamMatcherApply": {"layers": "7"}}, "layers: '7' is not among this model's output blocks 2, 3, 4, 5"),
])
def test_a_wrong_setting_is_named_with_its_value_and_the_fix(host, changes, words):
    fails(host, quick(full_control(), **changes), words)


def test_an_empty_mask_is_refused(host):
    prompt = quick(full_control())
    prompt["20"] = node("SolidMask", value=0.0, width=64, height=64)
    prompt["8"]["inputs"]["target_mask"] = ["20", 0]
    fails(host, prompt, "target MASK: it is empty")


def test_several_reference_pictures_at_once_are_refused(host):
    prompt = quick(full_control())
    prompt["7"]["inputs"]["reference"] = ["10", 0]
    prompt["10"]["inputs"]["batch_size"] = 2
    fails(host, prompt, "reference LATENT: it is (2, 4, 16, 16); give one picture")


def test_a_missing_reference_file_is_named(host):
    prompt = quick(save_and_load())
    prompt["7"] = node("DreamMatcherLoadReference", file="nowhere.safetensors")
    fails(host, prompt, "'nowhere.safetensors' is in none of")
    prompt["7"] = node("DreamMatcherLoadReference", file="../../secret.safetensors")
    fails(host, prompt, "is a path; give the name of a file")


def test_a_latent_of_other_channels_is_refused(host, toybox):
    inverter = host.nodes["DreamMatcherInvert"]()
    with pytest.raises(ValueError, match="it has 16 channels, this model takes 4"):
        inverter.invert(toybox[0], [], [], 5, "normal", {"samples": torch.zeros(1, 16, 8, 8)})


def test_an_empty_conditioning_is_refused(host, toybox):
    inverter = host.nodes["DreamMatcherInvert"]()
    with pytest.raises(ValueError, match="positive: this CONDITIONING is empty"):
        inverter.invert(toybox[0], [], [], 5, "normal", {"samples": torch.zeros(1, 4, 8, 8)})


def test_a_model_that_is_no_unet_is_refused(host, toybox):
    clip_model = toybox[1].patcher
    inverter = host.nodes["DreamMatcherInvert"]()
    with pytest.raises(ValueError, match="is not a UNet"):
        inverter.invert(clip_model, [], [], 5, "normal", {"samples": torch.zeros(1, 4, 8, 8)})


def test_an_interrupt_ends_the_inversion_and_the_next_run_is_whole(host):
    import comfy.model_management as management

    expected = host.images(host.run(quick(full_control())), "16")[0].tobytes()
    prompt = quick(full_control())
    executor = host.executor()
    inverter = host.nodes["DreamMatcherInvert"]
    original = inverter.invert

    def interrupted(self, *args, **kwargs):
        management.interrupt_current_processing()
        return original(self, *args, **kwargs)

    inverter.invert = interrupted
    try:
        assert not host.run(prompt, executor).success
    finally:
        inverter.invert = original
        management.interrupt_current_processing(False)
    assert host.images(host.run(prompt, executor), "16")[0].tobytes() == expected


def test_the_easy_node_equals_the_full_graph(host):
    prompt = quick(easy())
    full = full_control()
    full["2"]["inputs"].update(prompt["2"]["inputs"])
    for number, name in (("4", "reference_prompt"), ("5", "prompt")):
        full[number]["inputs"]["prompt"] = prompt["3"]["inputs"][name]
    for number in ("4", "5"):
        full[number]["inputs"]["subject_words"] = "cat"
    full["12"]["inputs"].update(seed=prompt["5"]["inputs"]["seed"], steps=6)
    del full["17"]["inputs"]["plain"]
    full = {number: entry for number, entry in full.items() if number not in ("11", "13", "15")}
    assert host.images(host.run(full), "16")[0].tobytes() == host.images(host.run(prompt), "7")[0].tobytes()


def test_graphs_from_before_an_option_was_added_run_as_they_did(host):
    workflow = json.loads((ROOT / "example_workflows" / "dreammatcher_04_toybox.json").read_text())
    now = to_prompt(workflow, host.nodes)
    entry = next(node for node in workflow["nodes"] if node["type"] == "DreamMatcherApply")
    assert entry["widgets_values"][-2:] == ["best", "off"]
    del entry["widgets_values"][-2:]
    assert to_prompt(workflow, host.nodes) == now
    apply = next(node for node in now.values() if node["class_type"] == "DreamMatcherApply")
    del apply["inputs"]["preset"], apply["inputs"]["live_preview"]
    assert host.run(quick(now)).success


def test_the_easy_node_inverts_again_only_for_what_the_inversion_depends_on(host, pack, toybox, monkeypatch):
    easy = pack.module("dreammatcher.host.matching.easy")
    inversions, original = [], easy.invert_reference
    monkeypatch.setattr(easy, "invert_reference", lambda *given: inversions.append(original(*given)) or inversions[-1])
    monkeypatch.setattr(easy, "STEPS", 3)
    model, clip, vae = toybox
    other = model.clone()
    other.add_patches({"diffusion_model.out.2.bias": (torch.ones(4),)}, 0.1)
    image = host.nodes["ToyboxReference"]().draw(1, "robot", 1, "grass")[0]
    easy_node = host.nodes["DreamMatcherEasy"]()

    def match(model=model, image=image, text="a photo of a robot", prompt="a robot on grass", negative=""):
        with torch.inference_mode():
            easy_node.match(model, clip, vae, image, text, prompt, negative, "robot")
        return len(inversions)

    assert match() == 1 and match(prompt="a robot at night") == 1
    assert match(image=1 - image) == 2 and match() == 3
    assert match(text="a robot") == 4 and match(text="a robot", negative="night") == 5
    assert match(model=other, text="a robot", negative="night") == 6
    assert match(model=other, text="a robot", negative="night", prompt="the robot") == 6


@pytest.mark.parametrize("prompts, words, said", [
    (("a photo of a red robot", "a red robot at night"), "red robot", "that both prompts share are taken: red robot"),
    (("masterpiece, photo", "a robot, best quality"), None, "these words of the prompt are taken: robot"),
])
def test_easy_without_subject_words_takes_what_the_prompts_share(host, pack, toybox, monkeypatch, prompts, words, said):
    easy = pack.module("dreammatcher.host.matching.easy")
    monkeypatch.setattr(easy, "STEPS", 2)
    seen, original = [], easy.mask_settings
    monkeypatch.setattr(easy, "mask_settings", lambda *given: seen.append(given) or original(*given))
    image = host.nodes["ToyboxReference"]().draw(1, "robot", 1, "grass")[0]
    with torch.inference_mode():
        outputs = host.nodes["DreamMatcherEasy"]().match(*toybox, image, *prompts, "", "")
    assert any(said in remark for remark in outputs["ui"]["text"])
    subjects = seen[0][:2]
    assert all(subject.columns for subject in subjects)
    if words:
        assert {subject.words for subject in subjects} == {words}


def test_pictures_of_combined_references_keep_their_own_sizes_in_the_preview(host):
    from harness.examples import two_views

    prompt = quick(two_views())
    prompt["30"] = node("ImageScale", image=["19", 0], upscale_method="nearest-exact", width=192, height=96, crop="disabled")
    prompt["17"]["inputs"]["reference_2"] = ["30", 0]
    result = host.run(prompt)
    assert result.success, result.error()
    shown = result.ui["17"]["dreammatcher"][0]["references"]
    assert [Image.open(host.file(entry)).size for entry in shown] == [(128, 128), (192, 96)]


def test_the_shipped_blueprint_is_what_the_nodes_declare_now(host):
    from harness.blueprint import FILE, blueprint

    if host.upstream:
        pytest.skip("the layout follows the packaged host's declarations")
    assert json.loads(FILE.read_text()) == json.loads(json.dumps(blueprint(host.nodes))), "run make examples"
