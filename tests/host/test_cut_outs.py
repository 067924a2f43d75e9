"""A picture with a transparent background means the same by every way into the pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from graph_around import TestList, linked
from PIL import Image

from harness.graphs import node

EIGHT_BITS = 0.5 / 255 + 1e-6  # what a file rounds off


@pytest.fixture(scope="module")
def cut_outs(host):
    """Two RGBA pictures [128, 128, 4] whose files still hold the background's colours."""
    pictures_cut = []
    for pose in (1, 2):
        picture, mask = host.nodes["ToyboxReference"]().draw(1, "robot", pose, "grass")
        pictures_cut.append(torch.cat([picture[0], mask[0, ..., None]], -1))
    return pictures_cut


@pytest.fixture(scope="module")
def folder(host, cut_outs):
    path = Path(host.folder_paths.get_input_directory()) / "cut outs"
    path.mkdir(exist_ok=True)
    for number, picture in enumerate(cut_outs):
        Image.fromarray((picture.numpy() * 255).round().astype(np.uint8), "RGBA").save(path / f"{number}.png")
    return path.name


def made_by(host, way: str, cut_outs, folder):
    sets = host.nodes["DreamMatcherTrainingSet"]()
    named = dict(identifier="sks", class_word="robot", template="photo", resolution=128)
    if way == "folder":
        return sets.make(**named, folder=folder)["result"][0]
    if way == "list":
        return sets.make(**named, images=[picture[None] for picture in cut_outs])["result"][0]
    return sets.make(**named, images=torch.stack(cut_outs))["result"][0]


@pytest.mark.parametrize("way", ["batch", "list", "folder"])
def test_what_is_transparent_is_grey_and_the_rest_is_the_mask(host, cut_outs, folder, way):
    for example, given in zip(made_by(host, way, cut_outs, folder).examples, cut_outs, strict=True):
        colours, alpha = given[..., :3].movedim(-1, 0), given[..., 3]
        hidden, shown = alpha == 0, alpha == 1
        assert hidden.any() and shown.any()
        assert bool((example.picture[:, hidden] == 0.5).all())
        assert (example.picture[:, shown] - colours[:, shown]).abs().max() <= EIGHT_BITS
        assert (example.mask[0] - alpha).abs().max() <= EIGHT_BITS


def test_one_picture_of_a_batch_that_is_not_transparent_has_no_mask_by_every_way(host, cut_outs):
    whole = torch.cat([cut_outs[1][..., :3], torch.ones_like(cut_outs[1][..., 3:])], -1)
    path = Path(host.folder_paths.get_input_directory()) / "mixed"
    path.mkdir(exist_ok=True)
    for number, picture in enumerate((cut_outs[0], whole)):
        Image.fromarray((picture.numpy() * 255).round().astype(np.uint8), "RGBA").save(path / f"{number}.png")
    for way in ("batch", "list", "folder"):
        first, second = made_by(host, way, [cut_outs[0], whole], path.name).examples
        assert first.mask is not None and second.mask is None, way


@pytest.mark.parametrize("mode", ["P", "LA"])
def test_transparency_of_every_kind_of_file_counts(host, mode):
    path = Path(host.folder_paths.get_input_directory()) / f"mode {mode}"
    path.mkdir(exist_ok=True)
    if mode == "P":
        picture = Image.new("P", (100, 100), 1)
        picture.putpalette([255, 0, 0, 0, 0, 255])
        picture.paste(0, (0, 0, 100, 50))
        picture.save(path / "0.png", transparency=0)
    else:
        picture = Image.new("LA", (100, 100), (200, 255))
        picture.paste((10, 0), (0, 0, 100, 50))
        picture.save(path / "0.png")
    example, = made_by(host, "folder", [], path.name).examples
    assert bool((example.picture[:, :50] == 0.5).all())
    assert not example.mask[:, :50].any() and bool((example.mask[:, 50:] == 1).all())


def test_a_picture_that_is_transparent_all_over_is_refused_by_every_way(host, cut_outs):
    nothing = torch.cat([cut_outs[0][..., :3], torch.zeros_like(cut_outs[0][..., 3:])], -1)
    path = Path(host.folder_paths.get_input_directory()) / "nothing"
    path.mkdir(exist_ok=True)
    Image.fromarray((nothing.numpy() * 255).astype(np.uint8), "RGBA").save(path / "empty.png")
    for way, said in (("batch", "images: all of it is transparent"), ("list", "images: all of it is transparent"),
                      ("folder", "folder: empty.png: all of it is transparent")):
        with pytest.raises(ValueError, match=said):
            made_by(host, way, [cut_outs[1], nothing], path.name)


@pytest.fixture
def objectives(pack, monkeypatch):
    """The sets and objectives that Learn (Easy) passes to a training that does not run."""
    easy = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setattr(easy, "BUDGETS", {"quick": easy.TrainingBudget(1, 1)})
    asked = []
    monkeypatch.setattr(easy, "dreambooth", lambda *given: asked.append((given[3], given[6])) or dreambooth(*given))
    dreambooth = pack.module("dreammatcher.host.training.learn").dreambooth
    return asked


@pytest.mark.usefixtures("as_in_a_graph")
def test_learn_easy_learns_what_is_not_transparent(host, toybox, cut_outs, objectives):
    learn = host.nodes["DreamMatcherLearn"]().learn
    learn(*toybox, torch.stack(cut_outs), "robot", "quick", 1e-4, 0)
    learn(*toybox, torch.stack(cut_outs)[..., :3], "robot", "quick", 1e-4, 0)
    (training_set, cut), (_, whole) = objectives
    assert cut.masked and not whole.masked
    assert all(bool((example.picture[:, alpha == 0] == 0.5).all())
               for example, alpha in zip(training_set.examples, (picture[..., 3] for picture in cut_outs)))


@pytest.mark.usefixtures("as_in_a_graph")
def test_the_colours_under_what_is_transparent_change_nothing_that_learn_easy_learns(host, fresh, cut_outs, objectives):
    """The gradient sees neither the hidden background nor the grey in its place."""
    learn = host.nodes["DreamMatcherLearn"]().learn
    other = [torch.cat([torch.where(picture[..., 3:] == 0, torch.rand(3), picture[..., :3]), picture[..., 3:]], -1)
             for picture in cut_outs]
    first, second = (learn(*fresh, torch.stack(pictures), "robot", "quick", 1e-3, 0)["result"][2].lora
                     for pictures in (cut_outs, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("as_in_a_graph")
@pytest.mark.parametrize("masked", [False, True])
def test_dreambooth_says_when_it_learns_what_lies_outside_of_the_masks(host, toybox, cut_outs, folder, caplog, masked):
    training_set = made_by(host, "folder", cut_outs, folder)
    host.nodes["DreamMatcherDreamBooth"]().learn(*toybox, training_set, "LoRA", 1, 1e-4, 0, masked=masked)
    assert ("masked is off" in caplog.text) is not masked


def test_references_of_an_evaluation_are_grey_where_they_are_transparent(pack, cut_outs, tmp_path):
    Image.fromarray((cut_outs[0].numpy() * 255).round().astype(np.uint8), "RGBA").save(tmp_path / "a.png")
    read = pack.module("dreammatcher.evaluation.scoring").picture(tmp_path / "a.png")
    assert bool((read[:, cut_outs[0][..., 3] == 0] == 0.5).all())
    Image.fromarray((cut_outs[0][..., :3].numpy() * 255).round().astype(np.uint8)).save(tmp_path / "b.png")
    opaque = pack.module("dreammatcher.evaluation.scoring").picture(tmp_path / "b.png")
    assert torch.equal(opaque, torch.from_numpy(np.array(Image.open(tmp_path / "b.png"))).movedim(-1, 0).float() / 255)


def test_vico_sees_grey_where_its_reference_is_transparent(pack, toybox, cut_outs):
    latent = pack.module("dreammatcher.host.vico.pictures").reference_latent
    alpha = cut_outs[0][None, ..., 3:]
    grey = 0.5 + alpha * (cut_outs[0][None, ..., :3] - 0.5)
    with torch.inference_mode():
        assert torch.equal(latent(toybox[0], cut_outs[0][None], toybox[2], None), latent(toybox[0], grey, toybox[2], None))


def test_a_list_of_cut_outs_in_a_graph_is_the_folder_of_their_files(host, cut_outs, folder):
    pictures = [picture[None] for picture in cut_outs]
    named = dict(identifier="sks", class_word="robot", template="photo", resolution=128)
    shown = host.run({"1": linked(host, pictures, "cut outs", TestList),
                      "2": node("DreamMatcherTrainingSet", images=["1", 0], **named),
                      "3": node("DreamMatcherTrainingSet", folder=folder, **named)}).ui
    assert shown["2"]["text"] == shown["3"]["text"] and shown["2"]["text"][0].count("with a mask") == 2
