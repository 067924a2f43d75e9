"""Loaders offer and read what nodes save, whatever the file is called and wherever it lies."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.graphs import node


@pytest.fixture
def save(host):
    """A prefix -> the file of an inverted reference, saved by the node."""
    def saved(prefix: str) -> Path:
        prompt = {
            "1": node("ToyboxLoader"), "2": node("ToyboxReference", subject=1, kind="robot", pose=1, background="grass"),
            "3": node("VAEEncode", pixels=["2", 0], vae=["1", 2]), "4": node("CLIPTextEncode", clip=["1", 1], text="a robot"),
            "5": node("DreamMatcherInvert", model=["1", 0], reference=["3", 0], positive=["4", 0], negative=["4", 0], steps=1,
                      scheduler="normal"),
            "6": node("DreamMatcherSaveReference", reference=["5", 0], filename_prefix=prefix)}
        result = host.run(prompt)
        assert result.success, result.error()
        return Path(result.ui["6"]["text"][0])
    return saved


def offered(host, loader: str = "DreamMatcherLoadReference") -> list[str]:
    return host.nodes[loader].INPUT_TYPES()["required"]["file"][0]


def load(host, name: str):
    return host.nodes["DreamMatcherLoadReference"]().load(name)[0]


@pytest.mark.parametrize("prefix", ["dreammatcher/{}", "{}", "cats/{}", "dreammatcher/cats/{}", "a/b/c/{}", "%year%/{}"])
def test_a_reference_saved_under_any_prefix_is_offered_and_read(host, save, prefix):
    path = save(prefix.format(f"tom{uuid.uuid4().hex[:8]}"))
    name, = [one for one in offered(host) if Path(one).name == path.name]
    assert torch.equal(load(host, name).latent, load(host, path.name).latent)
    executor = host.executor()
    assert host.run({"1": node("DreamMatcherLoadReference", file=name), "2": node(
        "DreamMatcherSaveReference", reference=["1", 0], filename_prefix=f"again/{uuid.uuid4().hex[:8]}")}, executor).success


def test_files_of_one_name_in_two_folders_are_told_apart(host, save):
    word = uuid.uuid4().hex[:8]
    first, second = save(f"cats/{word}"), save(f"dogs/{word}")
    with safe_open(second, "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({**tensors, "latent": tensors["latent"] + 1}, second, about)
    names = [name for name in offered(host) if word in name]
    assert names == [f"cats/{first.name}", f"dogs/{first.name}"]
    assert not torch.equal(*(load(host, name).latent for name in names))
    assert torch.equal(load(host, names[1].replace("/", "\\")).latent, load(host, names[1]).latent), "as Windows writes it"
    with pytest.raises(ValueError, match=f"several are called '{first.name}'; choose one of cats/{first.name}, dogs/"):
        load(host, first.name)


def test_a_file_in_the_folder_itself_keeps_its_plain_name_beside_others(host, save):
    word = uuid.uuid4().hex[:8]
    nested, plain = save(f"dreammatcher/cats/{word}"), save(f"dreammatcher/{word}")
    models = Path(host.folder_paths.models_dir) / "dreammatcher"
    models.mkdir(parents=True, exist_ok=True)
    assert {f"cats/{nested.name}", plain.name} <= set(offered(host))
    shutil.copy(plain, models / plain.name)
    assert {f"cats/{nested.name}", plain.name, f"output/dreammatcher/{plain.name}"} <= set(offered(host))
    shelf = host.pack().module("dreammatcher.host.matching.files").REFERENCES
    assert shelf.find(plain.name) == models / plain.name and shelf.find(f"output/dreammatcher/{plain.name}") == plain
    (models / plain.name).unlink()


def test_other_files_of_the_output_folder_are_not_offered(host):
    output = Path(host.folder_paths.get_output_directory())
    (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.ones(2)}, output / "checkpoints" / "my_merge.safetensors")
    (output / "broken.safetensors").write_bytes(b"\x10\x00")
    assert not [name for name in offered(host) if "my_merge" in name or "broken" in name]


def test_states_and_jobs_of_trainings_are_no_references(host, save):
    path, word = save(f"dreammatcher/{uuid.uuid4().hex[:8]}"), uuid.uuid4().hex
    for other in (path.parent / "training" / f"{word}.safetensors", path.parent / "jobs" / word / "pictures.safetensors"):
        other.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.ones(2)}, other)
    assert path.name in offered(host)
    assert not [name for name in offered(host) if word in name or Path(name).name == "pictures.safetensors"]
    save_file({"weight": torch.ones(2)}, path.parent / f"{word}.safetensors")
    assert f"{word}.safetensors" in offered(host), "loading it says what it is"


def test_the_output_folder_is_walked_again_only_when_it_has_changed(host, save, monkeypatch):
    path = save(f"walked/{uuid.uuid4().hex[:8]}")
    assert path.name in offered(host)
    module = host.pack().module("dreammatcher.host.graph.files")
    walks, walk = [], module.walk
    monkeypatch.setattr(module, "walk", lambda folder: walks.append(folder) or walk(folder))
    assert path.name in offered(host) and not walks
    again = path.with_name(f"{uuid.uuid4().hex[:8]}.safetensors")
    shutil.copy(path, again)
    assert again.name in offered(host) and walks
    again.unlink()
    assert again.name not in offered(host)


def test_links_that_lead_in_a_circle_do_no_harm(host, save):
    path = save(f"dreammatcher/{uuid.uuid4().hex[:8]}")
    circle = path.parent / "circle"
    if not circle.exists():
        try:
            os.symlink(path.parent, circle, target_is_directory=True)
        except OSError:
            pytest.skip("no links on this system")
    assert path.name in offered(host)
    circle.unlink()


SHELVES = {"dreammatcher": "DreamMatcherLoadReference", "vico": "DreamMatcherViCoLoad", "sefi": "DreamMatcherSeFiLoad"}


@pytest.mark.parametrize("kind", SHELVES)
def test_a_models_folder_that_extra_model_paths_names_is_searched(host, tmp_path, kind):
    extra = tmp_path / "second disk"
    (extra / "cats").mkdir(parents=True)
    name = f"{uuid.uuid4().hex[:8]}.safetensors"
    save_file({"a": torch.ones(1)}, extra / name)
    save_file({"a": torch.ones(1)}, extra / "cats" / f"nested_{name}")
    assert kind in host.folder_paths.folder_names_and_paths, "the host knows the kind before a file of it is asked for"
    host.folder_paths.add_model_folder_path(kind, str(extra))
    try:
        assert {name, f"nested_{name}"} <= set(offered(host, SHELVES[kind]))
    finally:
        paths = host.folder_paths.folder_names_and_paths[kind]
        (paths.paths if hasattr(paths, "paths") else paths[0]).remove(str(extra))


def test_a_yaml_file_of_the_hosts_adds_a_folder_of_references(host, tmp_path):
    """The host's own reader of extra_model_paths.yaml."""
    if host.upstream:
        from utils.extra_config import load_extra_path_config as read
    else:
        from comfy.cmd.extra_model_paths import load_extra_path_config as read
    (tmp_path / "mine" / "references").mkdir(parents=True)
    name = f"{uuid.uuid4().hex[:8]}.safetensors"
    save_file({"a": torch.ones(1)}, tmp_path / "mine" / "references" / name)
    (tmp_path / "extra.yaml").write_text(f"mine:\n  base_path: {tmp_path / 'mine'}\n  dreammatcher: references\n")
    read(str(tmp_path / "extra.yaml"))
    assert name in offered(host)
    paths = host.folder_paths.folder_names_and_paths["dreammatcher"]
    (paths.paths if hasattr(paths, "paths") else paths[0]).pop()


@pytest.fixture
def result(pack):
    """Custom Diffusion's: a LoRA and a word."""
    Learned = pack.module("dreammatcher.training.export").Learned
    name = "lora_unet_output_blocks_4_1_transformer_blocks_0_attn2_to_v"
    generator = torch.Generator().manual_seed(0)
    lora = {f"{name}.lora_down.weight": torch.randn(4, 96, generator=generator),
            f"{name}.lora_up.weight": torch.randn(64, 4, generator=generator)}
    return Learned(lora, {"sks": torch.randn(1, 96, generator=generator)}, {"identifier": "sks", "method": "Custom Diffusion"})


@pytest.fixture
def folders(model_folder):
    return [model_folder(kind) for kind in ("loras", "embeddings")]


def test_a_lora_and_its_word_have_one_name_and_both_are_offered(host, folders, result):
    name = f"my {uuid.uuid4().hex[:8]}"
    save = host.nodes["DreamMatcherSaveLearned"]().save
    file, = save(result, name)["result"]
    word = file.replace(" ", "_")
    assert {file, word} <= set(offered(host, "DreamMatcherLoadLearned"))
    plain, = save(result, name.replace(" ", "_"))["result"]
    assert Path(plain).stem == f"{name.replace(' ', '_')}_2", "its embedding's name is taken"
    assert {plain, f"embeddings/{plain}"} <= set(offered(host, "DreamMatcherLoadLearned"))


@pytest.mark.usefixtures("as_in_a_graph")
def test_both_are_read_and_the_lora_brings_its_word(host, pack, toybox, folders, result, caplog):
    file, = host.nodes["DreamMatcherSaveLearned"]().save(result, f"my_{uuid.uuid4().hex[:8]}")["result"]
    read = host.nodes["DreamMatcherLoadLearned"]().load
    _, clip, learned, words = read(toybox[0], toybox[1], file, 1.0, 1.0)["result"]
    assert words == "sks" and torch.equal(learned.embeddings["sks"], result.embeddings["sks"])
    assert learned.lora.keys() >= result.lora.keys()
    tokens = [token for token, *_ in clip.tokenize("a sks robot")["l"][0]]
    assert sum(map(torch.is_tensor, tokens)) == 1
    alone = read(toybox[0], toybox[1], f"embeddings/{file}", 1.0, 1.0)["result"][2]
    assert not alone.lora and torch.equal(*(next(iter(one.embeddings.values())) for one in (alone, result)))
    state = host.nodes["DreamMatcherLoadLearned"].IS_CHANGED
    before = state(file=file)
    assert before == state(file=file)
    (folders[1] / file).unlink()
    assert before != state(file=file), "the node runs again when the embedding comes or goes"
    assert read(toybox[0], toybox[1], file, 1.0, 1.0)["result"][3] == ""
    assert f"its word sks was saved as the embedding {file}" in caplog.text


def test_names_by_link_and_by_hand_mean_the_same_file(host, save):
    path = save(f"cats/{uuid.uuid4().hex[:8]}")
    kind = host.nodes["DreamMatcherLoadReference"]
    assert kind.IS_CHANGED(file=path.name) == kind.IS_CHANGED(file=None)
    before = kind.IS_CHANGED(file=path.name)
    os.utime(path, ns=(1, 1))
    assert kind.IS_CHANGED(file=path.name) != before and json.dumps(before)
