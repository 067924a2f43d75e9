"""Pictures that come as a ComfyUI list are one set, in every node of ours that takes several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from graph_around import TestList, linked
from PIL import Image
from test_changes import vico_of

from harness.graphs import node

SIZES = ((128, 96), (96, 128), (160, 160))  # height, width


@pytest.fixture(scope="module")
def photos(host):
    """Three pictures of a subject in three sizes, [1, H, W, 3] each."""
    draw = host.nodes["ToyboxReference"]().draw
    pictures = [draw(1, "robot", pose, "grass")[0].movedim(-1, 1) for pose in (1, 2, 3)]
    return [torch.nn.functional.interpolate(picture, size=size, mode="bilinear").movedim(1, -1)
            for picture, size in zip(pictures, SIZES)]


def sets_of(host, prompt: dict, monkeypatch) -> list:
    """The training sets that a graph makes."""
    results, kind = [], host.nodes["DreamMatcherTrainingSet"]
    make = kind.make
    monkeypatch.setattr(kind, "make", lambda self, **given: results.append(make(self, **given)) or results[-1])
    result = host.run(prompt)
    assert result.success, result.error()
    return [each["result"][0] for each in results]


def training_set(images: list, **more) -> dict:
    return node("DreamMatcherTrainingSet", identifier="sks", class_word="robot", template="photo", resolution=128, images=images,
                **more)


def test_a_list_of_pictures_of_any_size_is_one_training_set_with_its_texts_as_captions(host, photos, monkeypatch):
    texts = ["a sks robot on\ngrass", "", "a large sks robot"]
    prompt = {"1": linked(host, photos, "photos", TestList), "2": linked(host, texts, "texts", TestList),
              "3": training_set(["1", 0], captions=["2", 0])}
    joined, = sets_of(host, prompt, monkeypatch)
    assert [tuple(example.picture.shape[1:]) for example in joined.examples] == list(SIZES)
    assert all(torch.equal(example.picture, photo[0].movedim(-1, 0)) for example, photo in zip(joined.examples, photos))
    assert [example.captions for example in joined.examples] == [("a sks robot on grass",), ("a photo of a sks robot",),
                                                                 ("a large sks robot",)]


def test_a_batch_split_into_a_list_is_the_set_of_the_batch(host, monkeypatch):
    prompt = {f"{pose}": node("ToyboxReference", subject=1, kind="robot", pose=pose, background="grass") for pose in (1, 2, 3)}
    prompt |= {"4": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
               "5": node("ImageBatch", image1=["4", 0], image2=["3", 0]), "8": training_set(["5", 0]),
               "6": node("RebatchImages", images=["5", 0], batch_size=1), "7": training_set(["6", 0]),
               "9": node("RebatchImages", images=["5", 0], batch_size=2), "10": training_set(["9", 0])}
    first, *others = sets_of(host, prompt, monkeypatch)
    assert len(first.examples) == 3 and {other.fingerprint() for other in others} == {first.fingerprint()}


def test_a_folder_that_the_hosts_own_node_loads_is_one_set(host, monkeypatch):
    if "LoadImageDataSetFromFolder" not in host.nodes:
        pytest.skip("this host has no dataset loader")
    folder = Path(host.folder_paths.get_input_directory()) / "a data set"
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(SIZES):
        Image.new("RGB", size[::-1], ("red", "green", "blue")[number]).save(folder / f"{number}.png")
    prompt = {"1": node("LoadImageDataSetFromFolder", folder=folder.name), "2": training_set(["1", 0])}
    joined, = sets_of(host, prompt, monkeypatch)
    assert sorted(tuple(example.picture.shape[1:]) for example in joined.examples) == sorted(SIZES)


def test_masks_of_a_list_belong_to_the_pictures_one_by_one(host, photos, monkeypatch):
    masks = [torch.zeros(1, *size) for size in SIZES]
    for number, mask in enumerate(masks):
        mask[:, :40 + number] = 1
    prompt = {"1": linked(host, photos, "photos", TestList), "2": linked(host, masks, "masks", TestList),
              "3": training_set(["1", 0], masks=["2", 0])}
    joined, = sets_of(host, prompt, monkeypatch)
    assert all(torch.equal(example.mask, mask) for example, mask in zip(joined.examples, masks))


@pytest.mark.parametrize("texts, masks, said", [
    (["a sks robot", "a sks robot"], None, "captions: there are 2 texts for 3 pictures"),
    (["a sks robot", "a robot", ""], None, "captions: 'a robot' does not hold the identifier"),
    (None, [torch.ones(1, 128, 96), torch.ones(1, 96, 128)], "masks: there are 2 for 3 pictures"),
    (None, [torch.ones(1, 128, 96)], "masks: they are 96x128 pixels and the pictures 128x96"),
])
def test_texts_and_masks_that_do_not_belong_to_the_pictures_are_refused(host, photos, texts, masks, said):
    prompt = {"1": linked(host, photos, "photos", TestList), "2": training_set(["1", 0])}
    for name, values in (("captions", texts), ("masks", masks)):
        if values is not None:
            prompt[name] = linked(host, values, name, TestList)
            prompt["2"]["inputs"][name] = [name, 0]
    assert said in host.run(prompt).error()


def test_lists_at_other_inputs_still_make_a_run_for_each(host, photos, monkeypatch):
    prompt = {"1": linked(host, photos, "photos", TestList), "2": linked(host, ["sks", "ohwx"], "words", TestList),
              "3": training_set(["1", 0])}
    prompt["3"]["inputs"]["identifier"] = ["2", 0]
    sets = sets_of(host, prompt, monkeypatch)
    assert [(one.naming.identifier, len(one.examples)) for one in sets] == [("sks", 3), ("ohwx", 3)]


def test_an_empty_list_of_pictures_says_so(host):
    prompt = {"1": linked(host, [], "none", TestList), "2": training_set(["1", 0])}
    assert "images: the list of pictures is empty" in host.run(prompt).error()


def test_learn_easy_learns_from_a_list(host, pack, photos, monkeypatch):
    easy = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setattr(easy, "BUDGETS", {"quick": easy.TrainingBudget(2, 1)})
    seen, dreambooth = [], easy.dreambooth
    monkeypatch.setattr(easy, "dreambooth", lambda *given: seen.append(given[3]) or dreambooth(*given))
    prompt = {"1": node("ToyboxLoader"), "2": linked(host, photos, "photos", TestList),
              "3": node("DreamMatcherLearn", model=["1", 0], clip=["1", 1], vae=["1", 2], images=["2", 0], class_word="robot",
                        effort="quick", rate=1e-4, seed=0),
              "4": node("PreviewImage", images=["3", 3])}
    result = host.run(prompt)
    assert result.success, result.error()
    assert [len(training_set.examples) for training_set in seen] == [3] and len(result.ui["4"]["images"]) == 1


def test_vico_looks_at_all_pictures_of_a_list_at_once(host, pack, toybox, photos, monkeypatch):
    module = pack.module("nodes.vico")
    given, reference_latent = [], module.reference_latent
    monkeypatch.setattr(module, "reference_latent", lambda *inputs: given.append(reference_latent(*inputs)) or given[-1])
    prompt = {"1": node("ToyboxLoader"), "2": linked(host, photos, "photos", TestList),
              "3": linked(host, vico_of(pack, toybox), "vico"),
              "4": node("EmptyLatentImage", width=128, height=128, batch_size=1),
              "5": node("CLIPTextEncode", clip=["1", 1], text="a sks robot"),
              "6": node("DreamMatcherViCoApply", model=["1", 0], vico=["3", 0], strength=1.0, start=0.0, end=1.0,
                        image=["2", 0], vae=["1", 2]),
              "7": node("KSampler", model=["6", 0], positive=["5", 0], negative=["5", 0], latent_image=["4", 0], seed=1, steps=2,
                        cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0),
              "8": node("DreamMatcherViCoMasks", trace=["6", 1], samples=["7", 0], image=["2", 0]),
              "9": node("PreviewImage", images=["8", 0])}
    result = host.run(prompt)
    assert result.success, result.error()
    latent, = given
    assert latent.shape[0] == 3 and not torch.equal(latent[0], latent[1])
    assert len(result.ui["9"]["images"]) == 2, "one for each noise level, and not for each picture"
