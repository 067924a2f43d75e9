"""Hooks on a CLIP: LoRAs that belong to one prompt, on or off by a schedule. Hosts of 2024 have none."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from harness.examples import full_control, node

SUBJECT_KEY = "dreammatcher_subject"
TEXT = "lora_te_text_model_encoder_layers_{}_mlp_fc1"
UNET = "lora_unet_output_blocks_4_1_transformer_blocks_0_attn2_to_v"


@pytest.fixture(scope="module", autouse=True)
def _only_with_hooks(host):
    if "CreateHookLora" not in host.nodes:
        pytest.skip("this host has no hooks")


@pytest.fixture(scope="module")
def lora(host) -> str:
    """A LoRA of the Toybox text encoder and UNet, in the host's folder."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, wide, narrow, scale in [(TEXT.format(layer), 384, 96, 1.0) for layer in range(3)] + [(UNET, 64, 96, 0.2)]:
        weights[f"{name}.lora_down.weight"] = torch.randn(4, narrow, generator=generator) * scale
        weights[f"{name}.lora_up.weight"] = torch.randn(wide, 4, generator=generator) * scale
        weights[f"{name}.alpha"] = torch.tensor(4.0)
    folder = host.folder / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    host.folder_paths.add_model_folder_path("loras", str(folder))
    save_file(weights, folder / "hooked.safetensors")
    return "hooked.safetensors"


def hooks_for(host, lora: str, strengths: tuple[float, ...] = ()):
    """HOOKS of a LoRA; with ``strengths`` on a schedule of equal spans."""
    hooks, = host.nodes["CreateHookLora"]().create_hook(lora, 1.0, 1.0)
    keyframes = None
    for number, strength in enumerate(strengths):
        keyframes, = host.nodes["CreateHookKeyframe"]().create_hook_keyframe(strength, number / len(strengths), keyframes)
    return hooks if keyframes is None else host.nodes["SetHookKeyframes"]().set_hook_keyframes(hooks, keyframes)[0]


def hooked(host, clip, hooks, schedule: bool, on_conds: bool = True):
    return host.nodes["SetClipHooks"]().apply_hooks(clip, schedule, on_conds, hooks)[0]


@pytest.mark.parametrize("strengths, schedule, entries", [((), False, 1), ((), True, 1), ((0.0, 1.0, 0.5), True, 3)])
@pytest.mark.parametrize("on_conds", [True, False])
def test_a_subject_is_encoded_as_the_stock_node_does_with_every_hook(host, toybox, lora, strengths, schedule, entries, on_conds):
    text = "a photo of a robot on grass"
    with torch.inference_mode():
        clip = hooked(host, toybox[1], hooks_for(host, lora, strengths), schedule, on_conds)
        stock, = host.nodes["CLIPTextEncode"]().encode(clip, text)
        ours, subject = host.nodes["DreamMatcherSubject"]().encode(clip, text, "robot")["result"]
        bare, = host.nodes["CLIPTextEncode"]().encode(toybox[1], text)
    assert len(ours) == len(stock) == entries
    for (mine, options), (theirs, wanted) in zip(ours, stock):
        assert torch.equal(mine, theirs)
        assert options.pop(SUBJECT_KEY) == subject
        assert options.keys() == wanted.keys() and ("hooks" in options) == on_conds
        assert all(torch.equal(options[key], value) if torch.is_tensor(value) else options[key] == value
                   for key, value in wanted.items())
    assert not torch.equal(ours[-1][0], bare[0][0]), "the LoRA must change the text"


def hooked_graph(lora: str, encoder: str) -> dict:
    """Toybox with a LoRA hooked to its prompt, which ``encoder`` encodes; sampled with the plain model."""
    prompt = {number: entry for number, entry in full_control().items() if number in ("1", "5", "6", "10", "11", "13", "15")}
    text = prompt["5"]["inputs"]["prompt"]
    prompt["20"] = node("CreateHookLora", lora_name=lora, strength_model=1.0, strength_clip=1.0)
    prompt["21"] = node("SetClipHooks", clip=["1", 1], apply_to_conds=True, schedule_clip=False, hooks=["20", 0])
    prompt["5"] = node("CLIPTextEncode", clip=["21", 0], text=text) if encoder == "CLIPTextEncode" else \
        node("DreamMatcherSubject", clip=["21", 0], prompt=text, subject_words="robot")
    prompt["11"]["inputs"]["steps"] = 4
    return prompt


def test_a_hooked_lora_makes_the_picture_that_it_makes_through_the_stock_node(host, lora):
    stock, ours = (host.run(hooked_graph(lora, encoder)) for encoder in ("CLIPTextEncode", "DreamMatcherSubject"))
    assert ours.success, ours.error()
    without = hooked_graph(lora, "DreamMatcherSubject")
    without["5"]["inputs"]["clip"] = ["1", 1]
    pictures = [host.images(result, "15")[0].tobytes() for result in (stock, ours, host.run(without))]
    assert pictures[0] == pictures[1] != pictures[2]


def scheduled_graph(lora: str, spans: int, steps: int) -> dict:
    """Matching with a LoRA that a schedule turns up span by span; no plain picture beside it."""
    prompt = {number: entry for number, entry in full_control().items() if number not in ("11", "13", "15", "18")}
    prompt["20"] = node("CreateHookLora", lora_name=lora, strength_model=1.0, strength_clip=1.0)
    for number in range(spans):
        before = {"prev_hook_kf": [str(30 + number - 1), 0]} if number else {}
        share = number / spans
        prompt[str(30 + number)] = node("CreateHookKeyframe", strength_mult=share, start_percent=share, **before)
    prompt["21"] = node("SetHookKeyframes", hooks=["20", 0], hook_kf=[str(30 + spans - 1), 0])
    prompt["22"] = node("SetClipHooks", clip=["1", 1], apply_to_conds=True, schedule_clip=True, hooks=["21", 0])
    prompt["5"]["inputs"]["clip"] = ["22", 0]
    prompt["7"]["inputs"]["steps"] = 4
    prompt["9"]["inputs"]["start"] = 0.0
    prompt["12"]["inputs"].update(model=["9", 0], steps=steps)
    del prompt["17"]["inputs"]["plain"]
    return prompt


def test_a_prompt_that_a_schedule_encodes_anew_at_every_step_is_matched_at_every_step(host, lora):
    result = host.run(scheduled_graph(lora, spans=8, steps=8))
    assert result.success, result.error()
    assert len(result.ui["17"]["dreammatcher"][0]["steps"]) == 7, "all but the first, which has no features before it"


def test_an_inversion_says_what_it_leaves_out_of_a_prompt_with_hooks(host, toybox, lora, caplog):
    with torch.inference_mode():
        clip = hooked(host, toybox[1], hooks_for(host, lora, (0.0, 1.0)), schedule=True)
        positive, _ = host.nodes["DreamMatcherSubject"]().encode(clip, "a photo of a robot", "robot")["result"]
        negative, = host.nodes["CLIPTextEncode"]().encode(toybox[1], "")
        inverted, _, _ = host.nodes["DreamMatcherInvert"]().invert(
            toybox[0], positive, negative, 2, "normal", {"samples": torch.zeros(1, 4, 16, 16)})
    assert torch.equal(inverted.positive.cross_attention, positive[0][0])
    said = [record.getMessage() for record in caplog.records if "DreamMatcher" in record.getMessage()]
    assert ["positive has 2 parts" in said[0], "positive carries hooks" in said[1], len(said)] == [True, True, 2]


def test_easy_encodes_with_the_hooks_too(host, pack, toybox, lora, monkeypatch):
    monkeypatch.setattr(pack.module("dreammatcher.host.matching.easy"), "STEPS", 2)
    model, clip, vae = toybox
    picture, _ = host.nodes["ToyboxReference"]().draw(1, "robot", 1, "grass")
    with torch.inference_mode():
        clip = hooked(host, clip, hooks_for(host, lora, (0.0, 1.0)), schedule=True)
        stock = [host.nodes["CLIPTextEncode"]().encode(clip, text)[0] for text in ("a robot at night", "snow")]
        _, *ours, _ = host.nodes["DreamMatcherEasy"]().match(
            model, clip, vae, picture, "a photo of a robot", "a robot at night", "snow", "robot")["result"]
    for mine, theirs in zip(ours, stock):
        assert len(mine) == len(theirs) == 2
        assert all(torch.equal(a[0], b[0]) and a[1]["hooks"] is b[1]["hooks"] for a, b in zip(mine, theirs))


def test_features_of_a_reference_are_made_anew_when_a_hook_changes_the_model(host, pack, fresh, lora, monkeypatch):
    """Hooks of the prompts patch the weights with which the reference is looked at while sampling."""
    references, identity = (pack.module(f"dreammatcher.host.{name}") for name in ("matching.references", "model.identity"))
    passes, run = [], references.reference_pass
    monkeypatch.setattr(references, "reference_pass", lambda *arguments: passes.append(1) or run(*arguments))
    model, clip, vae = fresh
    nodes = {name: host.nodes[name]() for name in ("DreamMatcherSubject", "DreamMatcherInvert", "DreamMatcherMask",
                                                   "DreamMatcherApply", "CLIPTextEncode", "VAEEncode", "KSampler")}
    with torch.inference_mode():
        def groups(*strengths):
            return hooks_for(host, lora, strengths)

        def prompt(*strengths):
            clip_hooked = hooked(host, clip, groups(*strengths), False) if strengths else clip
            return nodes["DreamMatcherSubject"].encode(clip_hooked, "a photo of a robot on grass", "robot")["result"]

        of = identity.network_identity
        assert of(model, [groups(0.0, 1.0)]) == of(model, [groups(0.0, 1.0)])
        assert len({of(model), of(model, [groups(1.0)]), of(model, [groups(0.5)]), of(model, [groups(0.5, 1.0)])}) == 4
        plain, subject = prompt()
        negative, = nodes["CLIPTextEncode"].encode(clip, "")
        picture, _ = host.nodes["ToyboxReference"]().draw(1, "robot", 1, "grass")
        reference, *_ = nodes["DreamMatcherInvert"].invert(model, plain, negative, 4, "normal", {"samples": vae.encode(picture)})
        mask, = nodes["DreamMatcherMask"].make(subject, subject, 0.4, "otsu")
        matched, _ = nodes["DreamMatcherApply"].apply(model, reference, mask, 1.0, 0.0, 1.0, "")
        counts = []
        for strengths in ((), (1.0,), (1.0,), (0.5,), ()):
            before = len(passes)
            nodes["KSampler"].sample(matched, 1, 3, 5.0, "euler", "normal", prompt(*strengths)[0], negative,
                                     {"samples": torch.zeros(1, 4, 16, 16)})
            counts.append(len(passes) - before)
    assert counts[0] > 0 and counts[1] > 0 and counts[2] == 0 and counts[3] > 0 and counts[4] == 0
