"""ViCo trained in the graph on Toybox, and its files: ours, and those of the official code."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from closeness import RUN, close
from safetensors import safe_open
from safetensors.torch import save_file
from world import family_unet, robots, same_weights, weights

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

STEPS = 3


@pytest.fixture(scope="module")
def pictures(host):
    return robots(host, 3)


@pytest.fixture
def make_set(make_set):
    return partial(make_set, template="object")


def learn(host, model, clip, vae, training_set, **changes):
    chosen = dict(initial_word="robot", steps=STEPS, word_rate=1e-2, block_rate=1e-3, seed=1, batch=2)
    return host.nodes["DreamMatcherViCoTrain"]().learn(model, clip, vae, training_set, **{**chosen, **changes})


@pytest.fixture(scope="module")
def learned(host):
    """Model, CLIP, VAE, what ViCo learned, and the CLIP that knows its word."""
    with torch.inference_mode():
        model, clip, vae = host.nodes["ToyboxLoader"]().load()
        draw = host.nodes["ToyboxReference"]().draw
        images = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])
        training_set = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "object", 128, images)["result"][0]
        vico, text, _ = learn(host, model, clip, vae, training_set)
    return model, clip, vae, vico, text


@pytest.fixture
def shelf(host):
    folder = host.folder / "output" / "vico"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drawn(host, model, clip, text="a photo of a sks robot on grass", words="sks") -> torch.Tensor:
    positive = host.nodes["DreamMatcherSubject"]().encode(clip, text, words)["result"][0]
    negative = host.nodes["CLIPTextEncode"]().encode(clip, "")[0]
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    return host.nodes["KSampler"]().sample(model, 5, 4, 5.0, "euler", "normal", positive, negative, latent)[0]["samples"]


def test_it_learns_blocks_and_a_word_and_leaves_the_model_as_it_was(host, fresh, make_set, pictures):
    model, clip, vae = fresh
    before, text = weights(model), {name: value.clone() for name, value in clip.cond_stage_model.state_dict().items()}
    plain = drawn(host, model, clip)
    vico, knowing, loss = learn(host, model, clip, vae, make_set())
    assert loss.shape[-1] == 3 and vico.sites() == (1, 3, 5) and len(vico.tensors) == 60 and vico.word == "sks"
    applied, trace = host.nodes["DreamMatcherViCoApply"]().apply(model, vico, 1.0, 0.0, 1.0, pictures[:1], vae)
    assert not torch.equal(drawn(host, applied, knowing), drawn(host, model, knowing)) and not trace.skipped
    masks = host.nodes["DreamMatcherViCoMasks"]().show(trace, {}, pictures[:1])[0]
    assert masks.shape[0] == 4 and masks.shape[2] == 3 * masks.shape[1] and masks.min() >= 0 and masks.max() <= 1
    assert torch.equal(drawn(host, model, clip), plain) and same_weights(model, before)
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in text.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_every_parameter_moves_and_blocks_move_at_a_rate_of_their_own(host, pack, fresh, make_set):
    block, sites = pack.module("dreammatcher.vico.block"), pack.module("dreammatcher.host.vico.sites")
    with torch.inference_mode(False):
        begun = block.begun(sites.widths(fresh[0].model), torch.Generator().manual_seed(1))
    first = pack.module("dreammatcher.vico.learned").tensors_of(begun)
    vico = learn(host, *fresh, make_set(), block_rate=1e-5)[0]
    moved = {name: (vico.tensors[name] - value).abs().max().item() for name, value in first.items()}
    assert all(0 < change < 5e-5 for change in moved.values()), max(moved.items(), key=lambda item: item[1])


@pytest.mark.parametrize("changes", [{"bfloat16": True}, {"masked": False}, {"regularisation": 0.0}, {"batch": 1}])
def test_other_choices_train_too(host, fresh, make_set, changes):
    vico = learn(host, *fresh, make_set(), **changes)[0]
    assert all(torch.isfinite(value).all() for value in vico.tensors.values())
    name = "output_blocks.1.1.image_cross_attention.attn2.to_q.weight"
    assert not torch.equal(vico.tensors[name], learn(host, *fresh, make_set())[0].tensors[name])


def test_a_model_in_half_precision_learns_and_looks_too(host, fresh, make_set, pictures):
    model, clip, vae = fresh
    model.model.diffusion_model.half()
    model.model.diffusion_model.dtype = torch.float16
    vico, knowing, _ = learn(host, model, clip, vae, make_set())
    applied, _ = host.nodes["DreamMatcherViCoApply"]().apply(model, vico, 1.0, 0.0, 1.0, pictures[:1], vae)
    assert torch.isfinite(drawn(host, applied, knowing)).all()


def test_a_run_that_the_user_stops_goes_on_bit_for_bit_when_it_is_queued_again(host, fresh, make_set, stopped_at):
    expected = learn(host, *fresh, make_set(), seed=12)[0]
    with stopped_at(2, STEPS):
        learn(host, *fresh, make_set(), seed=12)
    resumed = learn(host, *fresh, make_set(), seed=12)[0]
    assert torch.equal(resumed.rows, expected.rows)
    assert all(torch.equal(value, resumed.tensors[name]) for name, value in expected.tensors.items())


def test_a_sample_is_drawn_while_it_trains(host, fresh, make_set, pack, monkeypatch):
    import comfy.utils

    shown, update = [], comfy.utils.ProgressBar.update_absolute

    def look(bar, value, total=None, preview=None):
        if preview is not None:
            shown.append(preview)
        update(bar, value, total, None)

    options = pack.module("dreammatcher.training.settings").TrainingOptions(
        sample_prompt="a photo of a sks robot", sample_every=2)
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", look)
    with_samples = learn(host, *fresh, make_set(), options=options)[0]
    assert len(shown) == 1 and shown[0][1].width > shown[0][1].height
    assert torch.equal(with_samples.rows, learn(host, *fresh, make_set())[0].rows), "samples change nothing"


@pytest.mark.parametrize("changes, says", [
    ({"identifier": ""}, "identifier: it is empty"),
    ({"images": None}, "there is none"),
])
def test_a_set_without_a_word_or_pictures_is_refused(host, fresh, make_set, changes, says):
    with pytest.raises(ValueError, match=says):
        learn(host, *fresh, make_set(**changes))


def test_one_picture_and_rates_that_make_no_sense_are_refused(host, fresh, make_set, pictures):
    with pytest.raises(ValueError, match="one picture"):
        learn(host, *fresh, make_set(images=pictures[:1]))
    with pytest.raises(ValueError, match="block_rate: 2.0 is outside"):
        learn(host, *fresh, make_set(), block_rate=2.0)
    with pytest.raises(ValueError, match="initial_word: it has no token"):
        learn(host, *fresh, make_set(), initial_word=" ")


def test_the_reference_comes_as_an_image_with_its_vae_or_as_a_latent(host, learned, pictures):
    model, _, vae, vico, text = learned
    apply = host.nodes["DreamMatcherViCoApply"]().apply
    latent = host.nodes["VAEEncode"]().encode(vae, pictures[:1])[0]
    by_image = drawn(host, apply(model, vico, 1.0, 0.0, 1.0, pictures[:1], vae)[0], text)
    by_latent = drawn(host, apply(model, vico, 1.0, 0.0, 1.0, latent=latent)[0], text)
    assert close(by_image, by_latent, RUN)
    large = torch.nn.functional.interpolate(pictures[:1].movedim(-1, 1), size=(300, 200)).movedim(1, -1)
    assert torch.isfinite(drawn(host, apply(model, vico, 1.0, 0.0, 1.0, large, vae)[0], text)).all()
    with pytest.raises(ValueError, match="give the reference as one of them"):
        apply(model, vico, 1.0, 0.0, 1.0, pictures[:1], vae, latent)
    with pytest.raises(ValueError, match="there is no reference"):
        apply(model, vico, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="vae: an image needs it"):
        apply(model, vico, 1.0, 0.0, 1.0, pictures[:1])


def test_what_is_saved_is_loaded_again_and_its_word_stands_in_stock_prompts(host, learned, model_folder, pictures):
    model, clip, vae, vico, text = learned
    model_folder("embeddings")
    said = host.nodes["DreamMatcherViCoSave"]().save(vico, "my robot")
    name, = said["result"]
    loaded, knowing, word = host.nodes["DreamMatcherViCoLoad"]().load(clip, name, "(in the file)")["result"]
    assert word == "sks" and torch.equal(loaded.rows, vico.rows) and loaded.tensors.keys() == vico.tensors.keys()
    apply = host.nodes["DreamMatcherViCoApply"]().apply
    first, again = (apply(model, one, 1.0, 0.0, 1.0, pictures[:1], vae)[0] for one in (vico, loaded))
    expected = drawn(host, first, text)
    assert torch.equal(drawn(host, again, knowing), expected)
    embedding = said["ui"]["text"][0].rpartition("embedding:")[2].partition(" ")[0]
    stock = drawn(host, again, clip, f"a photo of a embedding:{embedding} robot on grass", f"embedding:{embedding}")
    assert close(stock, expected, RUN)
    second, = host.nodes["DreamMatcherViCoSave"]().save(vico, "my robot")["result"]
    assert second != name, "a file that is there is not overwritten"
    (Path(host.folder_paths.models_dir) / "vico" / second).unlink()
    third = host.nodes["DreamMatcherViCoSave"]().save(vico, "my robot")
    embedding = third["ui"]["text"][0].rpartition("embedding:")[2].split()[0]
    assert Path(third["result"][0]).stem.rpartition("_")[2] == embedding.rpartition("_")[2], \
        "both files have one number, also where only one of them is there"
    with safe_open(Path(host.folder_paths.models_dir) / "vico" / name, "pt") as file:
        assert file.metadata()["format"] == "vico" and file.metadata()["sites"] == "1,3,5"


def official_pair(shelf, vico, prefix="diffusion_model.") -> tuple[str, str]:
    """The two files of the official code, as its trainer writes them."""
    torch.save({f"{prefix}{name}": value for name, value in vico.tensors.items()}, shelf / "cross_attention-399.pt")
    torch.save({"string_to_token": {"*": torch.tensor(265)},
                "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vico.rows.clone())})},
               shelf / "embeddings_gs-399.pt")
    return "cross_attention-399.pt", "embeddings_gs-399.pt"


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", ""])
def test_the_official_pair_is_read(host, learned, shelf, pictures, prefix):
    model, clip, vae, vico, text = learned
    with torch.inference_mode(False):
        names = official_pair(shelf, vico, prefix)
    loaded, knowing, word = host.nodes["DreamMatcherViCoLoad"]().load(clip, *names)["result"]
    assert word == "*" and torch.equal(loaded.rows, vico.rows)
    apply = host.nodes["DreamMatcherViCoApply"]().apply
    ours, theirs = (apply(model, one, 1.0, 0.0, 1.0, pictures[:1], vae)[0] for one in (vico, loaded))
    assert torch.equal(drawn(host, theirs, knowing, "a photo of a * robot on grass", "*"), drawn(host, ours, text))


class Trap:
    def __reduce__(self):
        return print, ("the file's code ran",)


def test_code_in_a_file_is_never_run_and_damaged_files_are_named(host, learned, shelf, capsys):
    clip, vico = learned[1], learned[3]
    load = host.nodes["DreamMatcherViCoLoad"]().load
    with torch.inference_mode(False):
        official_pair(shelf, vico)
    (shelf / "trap.pt").write_bytes(pickle.dumps({"a": Trap()}))
    torch.save({"a": Trap()}, shelf / "trap2.pt")
    (shelf / "short.safetensors").write_bytes(b"\x10\x00")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2), "clip_l": torch.ones(1, 128)}, shelf / "lora.safetensors")
    save_file({name: value for name, value in vico.tensors.items()}, shelf / "wordless.safetensors")
    for names, says in ((("trap.pt", "embeddings_gs-399.pt"), "trap.pt cannot be read"),
                        (("trap2.pt", "embeddings_gs-399.pt"), "only weights are read, never code"),
                        (("short.safetensors", "(in the file)"), "short.safetensors is not a whole safetensors file"),
                        (("lora.safetensors", "(in the file)"), "is no name of image attention"),
                        (("wordless.safetensors", "(in the file)"), "holds no word"),
                        (("cross_attention-399.pt", "(in the file)"), "holds no word"),
                        (("embeddings_gs-399.pt", "(in the file)"), "which is no weight"),
                        (("../escape.pt", "(in the file)"), "is a path")):
        with pytest.raises(ValueError, match=says):
            load(clip, *names)
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        load(clip, "gone.safetensors", "(in the file)")
    assert "the file's code ran" not in capsys.readouterr().out


def test_what_was_learned_on_another_model_is_refused_where_it_is_applied(host, learned, pictures):
    with pytest.raises(ValueError, match="vico: .*another kind of model"):
        host.nodes["DreamMatcherViCoApply"]().apply(family_unet("SD1.5"), learned[3], 1.0, 0.0, 1.0,
                                                     latent={"samples": torch.zeros(1, 4, 8, 8)})
