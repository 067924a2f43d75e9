"""Heads of saved LoRAs and embeddings say to other programs what they are, and by which words the subject is called."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from safetensors import safe_open
from test_every_option import PLAIN
from test_kept_steps import USUAL, embeddings, learn, loras, runs  # noqa: F401  fixtures
from world import family_unet

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


def head(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_lora_s_head_has_kohya_s_keys_and_the_model_metadata_of_its_training(host, learn, loras):  # noqa: F811
    learned = learn(steps=2, seed=7, lora_alpha=2.0, schedule="cosine", given={"rate": 5e-4, "batch": 2})
    name = host.nodes["DreamMatcherSaveLearned"]().save(learned, "my robot")["result"][0]
    said = head(loras / name)
    assert {key: said[key] for key in (
        "modelspec.sai_model_spec", "modelspec.title", "modelspec.trigger_phrase", "modelspec.resolution", "ss_output_name",
        "modelspec.prediction_type", "ss_network_dim", "ss_network_alpha", "ss_learning_rate", "ss_max_train_steps", "ss_seed",
        "ss_total_batch_size", "ss_lr_scheduler", "ss_num_train_images", "ss_network_module", "ss_v2")} == {
        "modelspec.sai_model_spec": "1.0.1", "modelspec.title": name.removesuffix(".safetensors"),
        "modelspec.trigger_phrase": "sks robot", "modelspec.resolution": "64x64",
        "ss_output_name": name.removesuffix(".safetensors"),
        "modelspec.prediction_type": "epsilon", "ss_network_dim": "4", "ss_network_alpha": "2", "ss_learning_rate": "0.0005",
        "ss_max_train_steps": "2", "ss_seed": "7", "ss_total_batch_size": "2", "ss_lr_scheduler": "cosine",
        "ss_num_train_images": "2", "ss_network_module": "networks.lora", "ss_v2": "False"}
    assert said["modelspec.architecture"].endswith("/lora") and "architecture" not in said
    assert abs(datetime.fromisoformat(said["modelspec.date"]).timestamp() - float(said["ss_training_finished_at"])) < 2
    (folder, tags), = json.loads(said["ss_tag_frequency"]).items()
    assert folder == "1_sks robot" and tags == {"sks robot": 2, "a photo of a sks robot": 2} and list(tags)[0] == "sks robot"
    assert json.loads(said["ss_dataset_dirs"]) == {folder: {"n_repeats": 1, "img_count": 2}}


def test_finer_choices_that_kohya_s_trainer_has_too_have_its_keys(host, fresh, small_set, loras):  # noqa: F811
    def learned(**details):
        plain, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL)
        options, = host.nodes["DreamMatcherTrainingDetails"]().make(**{**PLAIN, **details}, options=plain)
        return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, small_set, "LoRA", 1, 1e-3, 1, text_encoder=True,
                                                            options=options)[2].about

    finer = learned(text_rate=5e-4, noise_offset=0.05, caption_dropout=0.1, loss="smooth L1", huber_c=0.2, rank_dropout=0.25)
    keys = {"ss_text_encoder_lr": "0.0005", "ss_noise_offset": "0.05", "ss_caption_dropout_rate": "0.1",
            "ss_loss_type": "smooth_l1", "ss_huber_schedule": "snr", "ss_huber_c": "0.2",
            "ss_network_args": '{"rank_dropout": "0.25"}'}
    plain = learned()
    assert {key: text for key, text in finer.items() if key not in plain} == keys


def test_an_embedding_and_every_kept_step_say_the_same_of_themselves(host, learn, loras, embeddings):  # noqa: F811
    learn(steps=2, method="CustomDiffusion", keep_every=1)
    for step in (1, 2):
        for folder, kind in ((loras, "lora"), (embeddings, "textual-inversion")):
            said = head(folder / f"sks-step0000000{step}.safetensors")
            assert said["modelspec.title"] == f"sks-step0000000{step}" and said["modelspec.trigger_phrase"] == "sks robot"
            assert said["modelspec.architecture"].endswith(f"/{kind}") and "ss_network_dim" not in said


def test_a_chosen_step_that_is_saved_has_its_training_s_head_and_its_own_title(host, fresh, learn, loras):  # noqa: F811
    learn(steps=2, keep_every=1)
    chosen = host.nodes["DreamMatcherChoose"]().choose(*fresh[:2], "sks", 1)["result"][2]
    name = host.nodes["DreamMatcherSaveLearned"]().save(chosen, "the first")["result"][0]
    said = head(loras / name)
    assert said["modelspec.title"] == name.removesuffix(".safetensors") and said["steps"] == "1"
    assert said["modelspec.architecture"] == head(loras / "sks-step00000001.safetensors")["modelspec.architecture"]


@pytest.mark.parametrize(("family", "names"), [
    ("SD1.5", ("stable-diffusion-v1", "sd_v1")), ("SD2.1", ("stable-diffusion-v2-512", "sd_v2")),
    ("SDXL", ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"))])
def test_families_have_the_names_by_which_other_programs_know_them(pack, family, names):
    assert pack.module("dreammatcher.host.model.family").architecture_of(family_unet(family)) == names


def test_comfyui_s_own_reader_finds_the_words_and_the_base(host, learn, loras):  # noqa: F811
    reader = pytest.importorskip("app.assets.services.metadata_extract", reason="a host without an index of its models")
    name = host.nodes["DreamMatcherSaveLearned"]().save(learn(steps=1), "read by the host")["result"][0]
    found = reader.ExtractedMetadata()
    reader._extract_safetensors_metadata({"__metadata__": head(loras / name)}, found)
    assert "sks robot" in found.trained_words and found.base_model == head(loras / name)["ss_base_model_version"]
