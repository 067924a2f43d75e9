"""The step-by-step way in fewer nodes: a picture straight to Invert, subjects straight to Apply, one node for both prompts."""

from __future__ import annotations

import pytest
import torch

from harness.examples import SUBJECTS, full_control, node, save_and_load, short
from harness.numbers import quick

SAVED = "16"


def matched(prompt: dict) -> dict:
    """A graph of few steps without the plain picture and the preview."""
    kept = {number: entry for number, entry in prompt.items() if number not in ("11", "13", "15", "17")}
    return quick(kept)


def pixels(host, prompt: dict) -> bytes:
    result = host.run(prompt)
    assert result.success, result.error()
    return host.images(result, SAVED)[0].tobytes()


def refused(host, prompt: dict) -> str:
    """Why a graph is not run: the host's answer to it, or where it does not look that far the error of its run."""
    try:
        return host.run(prompt).error()
    except ValueError as answer:
        return str(answer)


@pytest.fixture(scope="module")
def expected(host) -> bytes:
    return pixels(host, matched(full_control()))


def test_the_short_form_makes_the_picture_of_the_long_one_bit_for_bit(host, expected):
    assert pixels(host, matched(short())) == expected


def test_a_picture_at_invert_is_what_vae_encode_makes_of_it(host, expected):
    prompt = matched(full_control())
    del prompt["3"], prompt["7"]["inputs"]["reference"]
    prompt["7"]["inputs"].update(image=["2", 0], vae=["1", 2])
    assert pixels(host, prompt) == expected


@pytest.mark.parametrize("subjects", [("reference_subject", "target_subject"), ("target_subject",)])
def test_subjects_at_apply_are_what_mask_makes_of_them_by_its_defaults(host, expected, subjects):
    """The reference's subject came with its prompt, so that it need not be connected."""
    prompt = matched(full_control())
    mask = prompt.pop("8")["inputs"]
    del prompt["9"]["inputs"]["mask"]
    prompt["9"]["inputs"].update({name: mask[name] for name in subjects})
    assert pixels(host, prompt) == expected


def test_one_node_for_both_prompts_is_two_subject_nodes(host, expected):
    prompt = matched(full_control())
    prompt["4"] = short()["4"]
    del prompt["5"]
    prompt["8"]["inputs"].update(SUBJECTS)
    prompt["12"]["inputs"]["positive"] = ["4", 1]
    assert pixels(host, prompt) == expected


def test_features_take_the_subjects_too_and_apply_finds_them(host, pack, monkeypatch):
    prompt = matched(save_and_load())
    passes, session = [], pack.module("dreammatcher.host.matching.references")
    original = session.reference_pass
    monkeypatch.setattr(session, "reference_pass", lambda *given: passes.append(given) or original(*given))
    prepared = pixels(host, prompt)
    assert not passes, "sampling made no features of its own"
    for number in ("9", "18"):
        for name in SUBJECTS:
            del prompt[number]["inputs"][name]
        prompt[number]["inputs"]["mask"] = ["8", 0]
    prompt["8"] = node("DreamMatcherMask", cycle_threshold=0.4, binarise="carried over", **SUBJECTS)
    assert pixels(host, prompt) == prepared


def invert(host, toybox, **given):
    model, clip, _ = toybox
    with torch.inference_mode():
        shown, empty = (host.nodes["CLIPTextEncode"]().encode(clip, text)[0] for text in ("a photo of a robot", ""))
        return host.nodes["DreamMatcherInvert"]().invert(model, shown, empty, 2, "ddim_uniform", **given)[0]


def drawn(height: int, width: int, channels: int = 3, count: int = 1) -> torch.Tensor:
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size, cells", [
    ((128, 128), (16, 16)), ((96, 136), (12, 17)), ((512, 512), (16, 16)), ((512, 128), (32, 8))])
def test_a_picture_keeps_its_size_unless_it_is_larger_than_the_model_was_made_for(host, toybox, size, cells):
    assert invert(host, toybox, image=drawn(*size), vae=toybox[2]).latent.shape[-2:] == cells


def test_transparent_parts_are_inverted_as_grey_and_the_artist_is_told(host, toybox, caplog):
    picture = drawn(64, 64, 4)
    picture[..., 3] = 0
    picture[:, :32, :, 3] = 1
    grey = picture[..., :3].clone()
    grey[:, 32:] = 0.5
    inverted = invert(host, toybox, image=picture, vae=toybox[2])
    assert "image: its transparent parts are inverted as grey" in caplog.text
    assert torch.equal(inverted.latent, invert(host, toybox, image=grey, vae=toybox[2]).latent)


@pytest.mark.parametrize("change, said", [
    (dict(reference=None), "reference: there is no picture to invert"),
    (dict(image=["2", 0]), "image and reference: give the picture as one of them, not both"),
    (dict(reference=None, vae=["1", 2]), "reference: there is no picture to invert"),
    (dict(reference=None, image=["2", 0]), "vae: an image needs it"),
])
def test_invert_names_what_is_missing_or_given_twice_before_the_graph_runs(host, change, said):
    prompt = matched(full_control())
    inputs = prompt["7"]["inputs"]
    inputs.update(change)
    prompt["7"]["inputs"] = {name: value for name, value in inputs.items() if value is not None}
    prompt["30"] = node("DreamMatcherSaveReference", reference=["7", 0], filename_prefix="dreammatcher/none")
    assert said in refused(host, prompt)
    if host.upstream:
        with pytest.raises(ValueError, match=said):
            host.check(prompt)


def test_invert_refuses_what_it_is_given_in_a_run_too(host, toybox):
    vae = toybox[2]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for given, said in (({}, "reference: there is no picture to invert"),
                        (dict(image=drawn(64, 64)), "vae: an image needs it"),
                        (dict(image=drawn(64, 64), vae=vae, reference=latent), "image and reference: give the picture as one"),
                        (dict(image=drawn(64, 64, count=3), vae=vae), "image: there are 3 pictures; give one"),
                        (dict(image=drawn(8, 400), vae=vae), "image: it is 400x8 pixels; this model needs at least"),
                        (dict(image=drawn(64, 64) * torch.nan, vae=vae), "image: the reference holds NaN or infinity")):
        with pytest.raises(ValueError, match=said):
            invert(host, toybox, **given)


@pytest.mark.parametrize("kind", ["9", "18"])
def test_a_mask_and_a_subject_together_are_refused(host, kind):
    prompt = matched(save_and_load())
    prompt["8"] = node("DreamMatcherMask", cycle_threshold=0.4, binarise="carried over", **SUBJECTS)
    prompt[kind]["inputs"]["mask"] = ["8", 0]
    said = host.run(prompt).error()
    assert "mask and reference_subject and target_subject: the subject is said twice" in said and "disconnect the mask" in said


def test_without_words_apply_says_which_the_prompts_share(host):
    prompt = matched(full_control())
    for number, text in (("4", "a red robot sitting"), ("5", "a red robot in the snow")):
        prompt[number]["inputs"].update(prompt=text, subject_words="")
    mask = prompt.pop("8")["inputs"]
    del prompt["9"]["inputs"]["mask"]
    prompt["9"]["inputs"].update({name: mask[name] for name in SUBJECTS})
    result = host.run(prompt)
    assert result.success, result.error()
    assert result.ui["9"]["text"] == ["subject_words: none given; the words that both prompts share are taken: red robot"]


def test_both_prompts_in_one_node_name_the_prompt_that_lacks_a_word(host, toybox):
    both = host.nodes["DreamMatcherSubjects"]()
    with torch.inference_mode():
        said = both.encode(toybox[1], "a photo of a red robot", "a red robot at night", "")["ui"]["text"]
        with pytest.raises(ValueError, match="reference_prompt: subject_words: 'robot' is not in the prompt"):
            both.encode(toybox[1], "a photo", "a robot", "robot")
        with pytest.raises(ValueError, match="^prompt: subject_words: 'robot' is not in the prompt"):
            both.encode(toybox[1], "a robot", "a photo", "robot")
    assert said == ["subject_words: none given; the words that both prompts share are taken: red robot"]
