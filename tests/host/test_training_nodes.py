"""Around a training: class pictures, folders, options, samples, early ends, rare words, and the node that does it all."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from world import same_weights, weights

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

STEPS = 4


@pytest.fixture
def make_prior(host, fresh, training_set):
    def make(**changes):
        chosen = dict(model=fresh[0], clip=fresh[1], vae=fresh[2], training_set=training_set, count=2, steps=2, cfg=5.0,
                      sampler_name="euler_ancestral", scheduler="normal", seed=3)
        done = host.nodes["DreamMatcherPriorSet"]().make(**{**chosen, **changes})
        return done["result"][0], done["ui"]["text"][0]
    return make


def folder_of(said: str):
    from pathlib import Path

    return Path(said.splitlines()[1])


def test_class_pictures_are_drawn_once_and_only_missing_ones_again(make_prior):
    import shutil

    shutil.rmtree(folder_of(make_prior()[1]))
    first, said = make_prior()
    assert "2 drawn now" in said and len(first.examples) == 2
    again, said = make_prior()
    assert "0 drawn now" in said
    assert all(torch.equal(a.picture, b.picture) for a, b in zip(first.examples, again.examples))
    (folder_of(said) / "00001.png").unlink()
    mended, said = make_prior(count=3)
    assert "2 drawn now" in said and torch.equal(mended.examples[1].picture, first.examples[1].picture)
    assert first.naming.identifier == "" and first.examples[0].captions == ("a photo of a robot",)


@pytest.mark.parametrize("name, inputs", [
    ("FreeU_V2", dict(b1=1.3, b2=1.4, s1=0.9, s2=0.2)), ("RescaleCFG", dict(multiplier=0.9)),
    ("PerturbedAttentionGuidance", dict(scale=3.0)), ("ModelSamplingDiscrete", dict(sampling="v_prediction", zsnr=False))])
def test_class_pictures_of_a_patched_model_are_kept_apart_and_found_again(host, fresh, make_prior, name, inputs):
    def patched(model):
        kind = host.nodes[name]
        call = kind.execute if hasattr(kind, "define_schema") else getattr(kind(), kind.FUNCTION)
        result = call(model, **inputs)
        return (result.args if hasattr(result, "args") else result)[0]

    plain, here = make_prior(count=1)
    other, there = make_prior(count=1, model=patched(fresh[0]))
    assert folder_of(here) != folder_of(there)
    assert not torch.equal(plain.examples[0].picture, other.examples[0].picture)
    again, said = make_prior(count=1, model=patched(fresh[0]))
    assert "0 drawn now" in said and folder_of(said) == folder_of(there)
    assert torch.equal(again.examples[0].picture, other.examples[0].picture)


@pytest.mark.parametrize("change", ["seed", "lora", "class", "steps"])
def test_class_pictures_of_another_model_or_choice_are_kept_apart(host, fresh, pictures, make_prior, model_folder, change):
    from safetensors.torch import save_file

    here = folder_of(make_prior()[1])
    if change == "lora":
        folder = model_folder("loras")
        name = "lora_unet_output_blocks_4_1_transformer_blocks_0_attn1_to_v"
        save_file({f"{name}.lora_down.weight": torch.ones(4, 64), f"{name}.lora_up.weight": torch.ones(64, 4)},
                  folder / "prior.safetensors")
        model = host.nodes["LoraLoaderModelOnly"]().load_lora_model_only(fresh[0], "prior.safetensors", 0.1)[0]
        other = make_prior(model=model)[1]
    elif change == "class":
        cats = host.nodes["DreamMatcherTrainingSet"]().make("sks", "cat", "photo", 128, pictures)["result"][0]
        other = make_prior(training_set=cats)[1]
    else:
        other = make_prior(**{change: 4})[1]
    assert folder_of(other) != here


def test_a_set_without_a_class_has_no_class_pictures(host, pictures, make_prior):
    nameless = host.nodes["DreamMatcherTrainingSet"]().make("sks", "", "photo", 128, pictures)["result"][0]
    with pytest.raises(ValueError, match="class_word: it is empty"):
        make_prior(training_set=nameless)


def test_an_interrupted_prior_goes_on_where_it_stopped(pack, make_prior, monkeypatch):
    import comfy.model_management
    import comfy.utils

    said = make_prior(seed=77)[1]
    for file in folder_of(said).iterdir():
        file.unlink()
    update = comfy.utils.ProgressBar.update_absolute

    def interrupt(bar, value, total=None, *rest):
        if total == 2:
            comfy.model_management.interrupt_current_processing()
        update(bar, value, total, *rest)

    with monkeypatch.context() as patch, pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
        patch.setattr(comfy.utils.ProgressBar, "update_absolute", interrupt)
        make_prior(seed=77)
    assert "1 drawn now" in make_prior(seed=77)[1]


@pytest.fixture
def input_folder(host):
    from pathlib import Path

    folder = Path(host.folder_paths.get_input_directory()) / "my toy"
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder


def read_folder(host, name="my toy", **changes):
    chosen = dict(identifier="sks", class_word="toy", template="photo", resolution=128, folder=name)
    return host.nodes["DreamMatcherTrainingSet"]().make(**{**chosen, **changes})["result"][0]


def test_a_folder_gives_pictures_of_any_size_with_captions_and_masks(host, input_folder, pictures):
    Image.new("RGB", (200, 100), "red").save(input_folder / "b.jpg")
    cut_out = Image.new("RGBA", (100, 160), (0, 255, 0, 0))
    cut_out.paste((0, 255, 0, 255), (0, 0, 100, 80))
    cut_out.save(input_folder / "a.png")
    (input_folder / "b.txt").write_text("a sks toy\nin the snow\n", encoding="utf-8")
    (input_folder / "notes.md").write_text("no picture")
    folder_set = read_folder(host)
    assert [example.captions for example in folder_set.examples] == [("a photo of a sks toy",), ("a sks toy in the snow",)]
    assert [tuple(example.picture.shape) for example in folder_set.examples] == [(3, 160, 100), (3, 100, 200)]
    picture, mask = folder_set.examples[0].picture, folder_set.examples[0].mask
    assert bool((mask[:, :80] == 1).all()) and not mask[:, 80:].any() and folder_set.examples[1].mask is None
    assert bool((picture[:, 80:] == 0.5).all()) and bool((picture[1, :80] == 1).all())
    assert len(read_folder(host, images=pictures).examples) == 4


def test_what_cameras_and_other_systems_leave_in_a_folder_does_no_harm(host, input_folder):
    import numpy as np

    Image.fromarray(np.linspace(0, 65535, 100 * 100).reshape(100, 100).astype(np.uint16)).save(input_folder / "sixteen.png")
    Image.new("RGB", (4000, 3000)).save(input_folder / "camera.jpg")
    (input_folder / "._camera.jpg").write_bytes(b"of macOS")
    (input_folder / "album.jpg").mkdir(exist_ok=True)
    (input_folder / "camera.txt").write_text("a sks toy", encoding="utf-8-sig")
    camera, sixteen = read_folder(host).examples
    assert camera.captions == ("a sks toy",) and tuple(camera.picture.shape) == (3, 1536, 2048)
    assert 0.45 < float(sixteen.picture.mean()) < 0.55
    (input_folder / "album.jpg").rmdir()


def test_a_folder_is_read_again_when_a_file_of_it_changes(host, input_folder):
    Image.new("RGB", (100, 100)).save(input_folder / "a.png")
    changed = host.nodes["DreamMatcherTrainingSet"].IS_CHANGED
    before = changed(folder="my toy")
    assert changed(folder="my toy") == before
    (input_folder / "a.txt").write_text("a sks toy")
    assert changed(folder="my toy") != before and changed(folder="") == changed(folder="not there")


@pytest.mark.parametrize("name, said", [("../..", "lies outside of"), ("/etc", "lies outside of"), ("nowhere", "is no folder")])
def test_folders_outside_of_the_input_folder_are_not_read(host, name, said):
    with pytest.raises(ValueError, match=f"folder: .*{said}"):
        read_folder(host, name)


def test_what_is_wrong_in_a_folder_is_named(host, input_folder):
    with pytest.raises(ValueError, match="folder: 'my toy' holds no pictures"):
        read_folder(host)
    (input_folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"folder: a\.png is damaged"):
        read_folder(host)
    Image.new("RGB", (100, 100)).save(input_folder / "a.png")
    (input_folder / "a.txt").write_text("a toy")
    with pytest.raises(ValueError, match=r"a\.txt: 'a toy' does not hold the identifier 'sks'"):
        read_folder(host)
    with pytest.raises(ValueError, match="images: there is none"):
        read_folder(host, "")


def options(host, **changes):
    chosen = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
                  min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again")
    return host.nodes["DreamMatcherTrainingOptions"]().make(**{**chosen, **changes})[0]


def dreambooth(host, fresh, training_set, **changes):
    return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, "LoRA", STEPS, 1e-3, 1, **changes)


def test_usual_options_change_nothing(host, fresh, training_set):
    plain = dreambooth(host, fresh, training_set)[2].lora
    same = dreambooth(host, fresh, training_set, options=options(host))[2].lora
    assert all(torch.equal(value, same[name]) for name, value in plain.items())


@pytest.mark.parametrize("change", [
    {"optimiser": "Adafactor"}, {"schedule": "cosine"}, {"warmup": 2}, {"weight_decay": 0.5}, {"clip_norm": 1e-4},
    {"accumulate": 2}, {"average": 0.9}, {"min_snr_gamma": 0.01}, {"lora_alpha": 1.0}])
def test_every_option_reaches_the_training(host, fresh, training_set, change):
    plain = dreambooth(host, fresh, training_set)[2].lora
    other = dreambooth(host, fresh, training_set, options=options(host, **change))[2].lora
    assert any(not torch.equal(value, other[name]) for name, value in plain.items())


def test_samples_are_drawn_on_the_node_and_change_nothing_that_is_learned(host, fresh, training_set, monkeypatch):
    import comfy.utils

    shown, update = [], comfy.utils.ProgressBar.update_absolute

    def watch(bar, value, total=None, preview=None):
        if total == STEPS and preview is not None:
            shown.append((value, preview))
        update(bar, value, total)

    plain = dreambooth(host, fresh, training_set)[2].lora
    before = weights(fresh[0])
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", watch)
    drawing = options(host, sample_prompt="a photo of a sks robot", sample_every=2)
    sampled = dreambooth(host, fresh, training_set, options=drawing)[2].lora
    assert [step for step, _ in shown] == [2, 4] and all(torch.equal(value, sampled[name]) for name, value in plain.items())
    kind, picture, _ = shown[0][1]
    assert kind == "JPEG" and picture.size[0] > picture.size[1]
    sample = picture.crop((picture.width - picture.height, 0, picture.width, picture.height))
    assert len(sample.getcolors(1 << 20)) > 50, "a picture, not a plain square"
    assert same_weights(fresh[0], before)


def test_a_stopped_training_gives_what_it_has_learned_when_that_is_wanted(host, fresh, training_set, monkeypatch):
    import comfy.model_management
    import comfy.utils

    update = comfy.utils.ProgressBar.update_absolute

    def interrupt(bar, value, total=None, *rest):
        if (value, total) == (2, STEPS):
            comfy.model_management.interrupt_current_processing()
        update(bar, value, total, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(comfy.utils.ProgressBar, "update_absolute", interrupt)
        learned = dreambooth(host, fresh, training_set, options=options(host, when_stopped="keep what is learned"))[2]
    assert learned.about["steps"] == "2" and any(value.any() for name, value in learned.lora.items() if "lora_up" in name)
    comfy.model_management.throw_exception_if_processing_interrupted()  # the graph goes on
    full = dreambooth(host, fresh, training_set)[2]
    assert full.about["steps"] == str(STEPS)


@pytest.mark.parametrize("name", ["DreamMatcherDreamBooth", "DreamMatcherTextualInversion", "DreamMatcherCustomDiffusion"])
def test_one_picture_is_too_few(host, fresh, pictures, name):
    alone = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 128, pictures[:1])["result"][0]
    chosen = {"DreamMatcherDreamBooth": dict(kind="LoRA"), "DreamMatcherTextualInversion": dict(initial_word="robot", vectors=1),
              "DreamMatcherCustomDiffusion": dict(initial_word="robot")}[name]
    with pytest.raises(ValueError, match="training_set: it has one picture"):
        host.nodes[name]().learn(*fresh, alone, steps=2, rate=1e-3, seed=0, **chosen)


def test_rare_words_are_single_late_tokens_without_vowels(pack, fresh):
    from types import SimpleNamespace

    rare_word = pack.module("dreammatcher.host.text.identifiers").rare_word
    vocabulary = {"dog</w>": 1929, "ktn</w>": 41_000, "pllx</w>": 45_000, "and</w>": 48_000, "zzq": 49_000, "bcd</w>": 100}
    inner = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: vocabulary))
    clip = SimpleNamespace(tokenize=lambda text: {"l": []}, tokenizer=SimpleNamespace(clip_l=inner))
    assert {rare_word(clip, seed) for seed in range(20)} == {"ktn", "pllx"}
    assert rare_word(clip, 3) == rare_word(clip, 3)
    assert rare_word(fresh[1], 3) == "sks", "Toybox has no rare words"


def test_the_easy_node_learns_from_photos_and_a_class_word(host, pack, fresh, pictures, monkeypatch):
    easy = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setitem(easy.BUDGETS, "quick", easy.TrainingBudget(STEPS, 2))
    before = weights(fresh[0])
    done = host.nodes["DreamMatcherLearn"]().learn(*fresh, pictures, "robot", "quick", 1e-3, 1)
    model, clip, learned, loss, subject = done["result"]
    assert subject == "sks robot" and done["ui"]["text"] == ["write in prompts: sks robot"]
    assert learned.lora and loss.shape[-1] == 3 and model is not fresh[0]
    assert same_weights(fresh[0], before)


def test_the_easy_node_refuses_before_it_draws_class_pictures(host, fresh, pictures, pack, monkeypatch):
    prior = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setattr(prior, "prior_set", lambda *_: pytest.fail("drawn for nothing"))
    with pytest.raises(ValueError, match="it has one picture"):
        host.nodes["DreamMatcherLearn"]().learn(*fresh, pictures[:1], "robot", "quick", 1e-3, 1)


@pytest.mark.parametrize("change", ["sampling", "clip"])
def test_class_pictures_depend_on_all_that_draws_them(host, fresh, make_prior, change):
    here = folder_of(make_prior()[1])
    if change == "clip":
        other = make_prior(clip=host.nodes["CLIPSetLastLayer"]().set_last_layer(fresh[1], -2)[0])
    else:
        other = make_prior(model=host.nodes["ModelSamplingDiscrete"]().patch(fresh[0], "eps", True)[0])
    assert folder_of(other[1]) != here and folder_of(make_prior()[1]) == here


def test_the_easy_node_needs_a_class_word(host, fresh, pictures):
    with pytest.raises(ValueError, match="class_word: it is empty"):
        host.nodes["DreamMatcherLearn"]().learn(*fresh, pictures, " ", "quick", 1e-3, 1)
