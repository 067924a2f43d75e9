"""Tests when the host runs a node of ours again: files that change, and names of files that come by a link."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import pytest
import torch
from graph_around import Anything, linked, ran
from PIL import Image
from safetensors.torch import save_file

from harness.graphs import node


@pytest.fixture
def photos(host, tmp_path_factory):
    """A folder of pictures in the host's input folder."""
    folder = Path(host.folder_paths.get_input_directory()) / tmp_path_factory.mktemp("photos").name
    folder.mkdir(parents=True)
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (128, 128), colour).save(folder / f"{number}.png")
    yield folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def training(host, folder: str, by_link: bool) -> dict:
    return {
        "1": node("ToyboxLoader"), "2": linked(host, folder),
        "3": node("DreamMatcherTrainingSet", identifier="sks", class_word="robot", template="photo", resolution=128,
                  folder=["2", 0] if by_link else folder),
        "4": node("DreamMatcherDreamBooth", model=["1", 0], clip=["1", 1], vae=["1", 2], training_set=["3", 0], kind="LoRA",
                  steps=1, rate=1e-4, seed=0),
        "5": node("PreviewImage", images=["4", 3]),
    }


@pytest.mark.parametrize("by_link", [False, True], ids=["typed", "linked"])
def test_a_training_runs_again_when_its_folder_changes_and_at_no_other_queue(host, photos, by_link):
    executor = host.executor()
    assert "4" in ran(host, training(host, photos.name, by_link), executor)
    for _ in range(2):
        assert not {"3", "4"} & ran(host, training(host, photos.name, by_link), executor)
    (photos / "1.txt").write_text("a sks robot in the snow")
    assert "4" in ran(host, training(host, photos.name, by_link), executor)
    assert "4" not in ran(host, training(host, photos.name, by_link), executor)


def test_a_folder_inside_of_a_link_counts_where_its_name_is_not_known(host, photos, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    link = photos / "link"
    try:
        os.symlink(tmp_path, link, target_is_directory=True)
    except OSError:
        pytest.skip("no links on this system")
    state = host.nodes["DreamMatcherTrainingSet"].IS_CHANGED
    before = state(folder=None)
    assert before == state(folder=None)
    Image.new("RGB", (64, 64)).save(inner / "new.png")
    assert before != state(folder=None)
    link.unlink()


def test_what_newer_hosts_write_into_pictures_does_not_grow_with_the_number_of_files(host, model_folder):
    if not host.upstream:
        pytest.skip("this host knows the value of a link later on, so it is told name by name")
    folder = model_folder("loras")
    state, sizes = host.nodes["DreamMatcherLoadLearned"].IS_CHANGED, []
    for number in range(2):
        save_file({"a": torch.ones(1)}, folder / f"one_more_{number}.safetensors")
        sizes.append(len(json.dumps(state(file=None))))
    assert sizes[0] == sizes[1] < 100


def test_what_the_host_copies_is_no_change_of_a_linked_folder(host, photos):
    executor = host.executor()
    ran(host, training(host, photos.name, True), executor)
    copied = Path(host.folder_paths.get_input_directory()) / "clipspace"
    copied.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(copied / f"mask-{photos.name}.png")
    assert "4" not in ran(host, training(host, photos.name, True), executor)
    (copied / f"mask-{photos.name}.png").unlink()


def test_what_the_host_is_told_can_be_written_into_pictures_and_names_no_folder(host, photos):
    """Hosts save it in the metadata of pictures, as JSON."""
    told = json.dumps(host.nodes["DreamMatcherTrainingSet"].IS_CHANGED(folder=None))
    assert len(told) > 10 and photos.name not in told


def vico_of(pack, toybox):
    sites = pack.module("dreammatcher.host.vico.sites")
    learned, block = pack.module("dreammatcher.vico.learned"), pack.module("dreammatcher.vico.block")
    blocks = block.begun(sites.widths(toybox[0].model), torch.Generator().manual_seed(0))
    return learned.ViCo(learned.tensors_of(blocks), torch.ones(1, 96), {"word": "sks"})


@pytest.fixture
def saved(host, pack, toybox, model_folder):
    """Loader -> its graph's inputs, and the file that it reads. Each call saves new ones."""
    for kind in ("loras", "embeddings"):
        model_folder(kind)
    invert = {
        "1": node("ToyboxLoader"), "2": node("ToyboxReference", subject=1, kind="robot", pose=1, background="grass"),
        "3": node("VAEEncode", pixels=["2", 0], vae=["1", 2]), "4": node("CLIPTextEncode", clip=["1", 1], text="a robot"),
        "5": node("DreamMatcherInvert", model=["1", 0], reference=["3", 0], positive=["4", 0], negative=["4", 0], steps=2,
                  scheduler="normal"),
        "6": node("DreamMatcherSaveReference", reference=["5", 0], filename_prefix="dreammatcher/changes"),
    }

    def save(loader: str) -> tuple[dict, Path]:
        if loader == "DreamMatcherLoadReference":
            return {}, Path(host.run(invert).ui["6"]["text"][0])
        if loader == "DreamMatcherSeFiLoad":
            sefi = pack.module("dreammatcher.sefi.learned").SeFi(torch.ones(5, 96), torch.ones(5, 96), {"word": "<me>"})
            return {}, pack.module("dreammatcher.host.sefi.files").save_sefi(sefi, "changes")[0]
        if loader == "DreamMatcherViCoLoad":
            saving = pack.module("dreammatcher.host.vico.files").save_vico
            return {"clip": ["1", 1], "embedding": "(in the file)"}, saving(vico_of(pack, toybox), "changes")[0]
        path = model_folder("embeddings") / "changes_word.safetensors"
        save_file({"emb_params": torch.rand(2, 96)}, path)
        return {"model": ["1", 0], "clip": ["1", 1], "strength_model": 1.0, "strength_clip": 1.0}, path
    return save


LOADERS = ("DreamMatcherLoadReference", "DreamMatcherLoadLearned", "DreamMatcherSeFiLoad", "DreamMatcherViCoLoad")


@pytest.mark.parametrize("by_link", [False, True], ids=["typed", "linked"])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_reads_its_file_once_and_again_when_the_file_changes(host, saved, loader, by_link):
    inputs, path = saved(loader)
    prompt = {"1": node("ToyboxLoader"), "2": linked(host, path.name),
              "3": node(loader, file=["2", 0] if by_link else path.name, **inputs), "4": seen(host, ["3", 0])}
    executor = host.executor()
    assert "3" in ran(host, json.loads(json.dumps(prompt)), executor)
    for _ in range(2):
        assert "3" not in ran(host, json.loads(json.dumps(prompt)), executor)
    os.utime(path, ns=(1, 1))
    assert "3" in ran(host, json.loads(json.dumps(prompt)), executor)
    assert "3" not in ran(host, json.loads(json.dumps(prompt)), executor)


def seen(host, value: list) -> dict:
    """An output node that takes anything."""
    class TestSeen:
        __test__ = False
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "see", "test", True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"value": (Anything("*"),)}}

        def see(self, value):
            return {"ui": {"text": [str(type(value).__name__)]}}

    host.nodes["TestSeen"] = TestSeen
    return node("TestSeen", value=value)


def test_every_node_of_ours_that_says_when_it_changed_takes_a_value_that_is_not_known(host):
    """Calls it as the hosts do: an input that comes by a link is None."""
    asked = {name: kind for name, kind in host.nodes.items()
             if name.startswith(("DreamMatcher", "Toybox")) and hasattr(kind, "IS_CHANGED")}
    assert {*LOADERS, "DreamMatcherTrainingSet"} <= asked.keys()
    for name, kind in asked.items():
        inputs = [name for name in inspect.signature(kind.IS_CHANGED).parameters if name != "_"]
        first, second = (kind.IS_CHANGED(**dict.fromkeys(inputs)) for _ in range(2))
        assert first == second, name
