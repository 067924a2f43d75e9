"""What is learned is kept on the way: files of single steps that the host's own loaders take, and a sheet of samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

STEPS = 5
USUAL = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
             min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again")


@pytest.fixture
def runs(host) -> Path:
    """The folder of runs, and the models folders of this test, empty."""
    folder = host.folder / "output" / "dreammatcher"
    for name in ("runs", "training"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder / "runs"


def emptied(folder: Path) -> Path:
    for path in folder.glob("*-step*"):
        path.unlink()
    return folder


@pytest.fixture
def loras(model_folder, runs) -> Path:
    return emptied(model_folder("loras"))


@pytest.fixture
def embeddings(model_folder, runs) -> Path:
    return emptied(model_folder("embeddings"))


@pytest.fixture
def learn(host, fresh, small_set):
    def learned(steps=STEPS, seed=1, method="DreamBooth", given=None, **options):
        chosen, = host.nodes["DreamMatcherTrainingOptions"]().make(**{**USUAL, **options})
        more = {"DreamBooth": dict(kind="LoRA"), "TextualInversion": dict(initial_word="robot", vectors=1),
                "CustomDiffusion": dict(initial_word="robot", sizes=False, batch=1)}[method]
        node = host.nodes[f"DreamMatcher{method}"]()
        usual = dict(steps=steps, rate=1e-3, seed=seed, options=chosen)
        return node.learn(*fresh, small_set, **{**usual, **more, **(given or {})})[2]
    return learned


@pytest.fixture
def stop_at(monkeypatch):
    """Has the user interrupt trainings of STEPS steps after one of them, as the host's button does."""
    import comfy.model_management
    import comfy.utils

    update = comfy.utils.ProgressBar.update_absolute

    def at(step: int) -> None:
        def interrupt(bar, value, total=None, *rest):
            if (value, total) == (step, STEPS):
                comfy.model_management.interrupt_current_processing()
            update(bar, value, total, *rest)
        monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", interrupt)
    return at


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def shown(runs: Path, name: str = "sks") -> tuple[list[int], Image.Image]:
    """The steps of a sheet, and its page."""
    with Image.open(runs / name / "sheet.png") as image:
        return json.loads(image.text["dreammatcher"])["steps"], image.convert("RGB")


def names(folder: Path) -> list[str]:
    """Names of the steps' files in a models folder, or of runs."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() or "-step" in path.name)


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_steps_are_kept_as_a_run_of_so_many_steps_would_be_saved_and_change_nothing(host, pack, learn, loras, average):
    half = pack.module("dreammatcher.host.training.keep").half
    plain, short = learn(average=average), learn(steps=2, average=average)
    kept = learn(average=average, keep_every=2)
    assert same(plain.lora, kept.lora) and kept.about == {**plain.about, "run": "sks"}
    assert names(loras) == [f"sks-step0000000{step}.safetensors" for step in (2, 4, 5)]
    assert same(load_file(loras / "sks-step00000002.safetensors"),
                {name: half(value) if value.ndim else value for name, value in short.lora.items()})
    assert same(load_file(loras / "sks-step00000005.safetensors"),
                {name: half(value) if value.ndim else value for name, value in kept.lora.items()})


def test_the_stock_loader_takes_every_kept_step(host, fresh, learn, loras):
    learn(keep_every=2)
    for name in names(loras):
        model, clip = host.nodes["LoraLoader"]().load_lora(*fresh[:2], name, 1.0, 1.0)
        assert len(model.patches) == len(load_file(loras / name)) / 3 and model is not fresh[0], name


def test_nothing_is_kept_where_that_is_off_and_nothing_is_said_of_a_run(learn, loras, runs):
    assert "run" not in learn().about
    assert not names(loras) and not runs.exists()


def test_the_sheet_grows_by_a_row_of_the_same_prompts_and_seeds(learn, loras, runs):
    learn(keep_every=2, sheet_prompts="a photo of a sks robot\n\na photo of a sks robot\na robot\n")
    steps, page = shown(runs)
    assert steps == [2, 4, 5]
    rows = [page.crop((96, 28 + 198 * number, page.width, 28 + 198 * number + 192)) for number in range(3)]
    pictures = [[row.crop((198 * column, 0, 198 * column + 192, 192)) for column in range(3)] for row in rows]
    assert page.width == 96 + 3 * 198 and all(len(one.getcolors(1 << 20)) > 50 for row in pictures for one in row)
    for row in pictures:
        assert row[0].tobytes() != row[1].tobytes(), "a prompt on two lines has two seeds"
    for column in range(3):
        assert pictures[0][column].tobytes() != pictures[1][column].tobytes(), "the model goes on between two rows"
    learn(keep_every=5, sheet_prompts="a photo of a sks robot\n\na photo of a sks robot\na robot\n")  # the same training again
    assert shown(runs)[0] == [2, 4, 5] and shown(runs)[1].tobytes() == page.tobytes()
    assert names(runs) == ["sks"] and len(names(loras)) == 3
    learn(keep_every=5, sheet_prompts="a robot")
    assert shown(runs)[0] == [5]


def test_the_samples_of_the_sheet_are_decoded(pack, host, fresh, learn, loras, runs):
    """The autoencoder's picture is not the rough one."""
    kept = pack.module("dreammatcher.host.training.kept")
    learn(keep_every=5)
    decoded = shown(runs)[1]
    shutil.rmtree(runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "has_room", lambda *_: False)
        learn(keep_every=5)
    assert decoded.size == shown(runs)[1].size and decoded.tobytes() != shown(runs)[1].tobytes()


def test_a_vae_beside_a_training_decodes_only_where_nothing_has_to_go_for_it(pack, fresh, monkeypatch):
    from types import SimpleNamespace

    kept = pack.module("dreammatcher.host.training.kept")
    latents = torch.zeros(1, 4, 64, 64)
    vae = SimpleNamespace(device=torch.device("cuda"), first_stage_model=fresh[2].first_stage_model, vae_dtype=torch.float16,
                          memory_used_decode=fresh[2].memory_used_decode)
    for free, room in ((1 << 30, False), (1 << 36, True)):
        monkeypatch.setattr(kept, "free_on", lambda device, free=free: free)
        assert kept.has_room(vae, latents) is room
    assert kept.has_room(SimpleNamespace(device=torch.device("cuda")), latents) is False
    assert kept.has_room(fresh[2], latents), "on the processor there is room"


def test_a_stop_keeps_its_step_and_the_run_goes_on_with_sheet_and_files(pack, learn, loras, runs, stop_at):
    expected = learn(seed=2)
    stop_at(3)
    with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
        learn(seed=2, keep_every=2)
    assert names(loras) == [f"sks-step0000000{step}.safetensors" for step in (2, 3)] and shown(runs)[0] == [2, 3]
    stop_at(0)
    assert same(learn(seed=2, keep_every=2).lora, expected.lora)
    assert shown(runs)[0] == [2, 3, 4, 5] and len(names(loras)) == 4


def test_a_stop_that_ends_the_run_keeps_its_step_too(pack, learn, loras, runs, stop_at):
    stop_at(3)
    learned = learn(seed=3, keep_every=100, when_stopped="keep what is learned", average=0.9)
    assert learned.about["steps"] == "3" and names(loras) == ["sks-step00000003.safetensors"] and shown(runs)[0] == [3]
    half = pack.module("dreammatcher.host.training.keep").half
    assert same(load_file(loras / "sks-step00000003.safetensors"),
                {name: half(value) if value.ndim else value for name, value in learned.lora.items()})


def test_an_interrupt_within_a_step_keeps_the_last_whole_one(pack, learn, loras, monkeypatch):
    import comfy.model_management

    loop, advance = pack.module("dreammatcher.training.loop"), []
    real = loop.Training.advance

    def stopped(training):
        advance.append(1)
        if len(advance) == 4:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return real(training)

    monkeypatch.setattr(loop.Training, "advance", stopped)
    with pytest.raises(pack.module("dreammatcher.host.training.run").Interrupted):
        learn(seed=4, keep_every=100)
    assert names(loras) == ["sks-step00000003.safetensors"]


def test_another_training_of_the_same_name_gets_a_number_and_no_file_is_overwritten(learn, loras, runs):
    (loras / "sks-step00000005.safetensors").write_bytes(b"of somebody else")
    learn(keep_every=5)
    learn(keep_every=5, seed=9)
    assert names(runs) == ["sks", "sks_2"]
    assert names(loras) == ["sks-step00000005.safetensors", "sks-step00000005_2.safetensors", "sks_2-step00000005.safetensors"]
    assert (loras / "sks-step00000005.safetensors").read_bytes() == b"of somebody else"
    learn(keep_every=5)
    assert len(names(loras)) == 3, "the same training has its files already"
    assert learn(keep_every=5, run_name="my robot").about["run"] == "my robot"
    assert "my robot-step00000005.safetensors" in names(loras)


def test_a_word_is_kept_as_an_embedding_that_prompts_read(host, fresh, learn, embeddings, loras):
    learned = learn(method="TextualInversion", keep_every=2)
    assert names(embeddings) == [f"sks-step0000000{step}.safetensors" for step in (2, 4, 5)] and not names(loras)
    rows, = load_file(embeddings / "sks-step00000005.safetensors").values()
    assert torch.equal(rows, learned.embeddings["sks"])


def test_what_learns_weights_and_a_word_keeps_both(host, learn, embeddings, loras):
    learn(method="CustomDiffusion", keep_every=5)
    assert names(embeddings) == names(loras) == ["sks-step00000005.safetensors"]


def test_a_full_disk_costs_the_step_and_not_the_training(pack, learn, loras, monkeypatch):
    keep, kept = (pack.module(f"dreammatcher.host.training.{name}") for name in ("keep", "kept"))
    said = []

    def full(*_):
        raise OSError(28, "No space left on device")

    expected = learn(seed=5)
    monkeypatch.setattr(keep, "_write", full)
    monkeypatch.setattr(kept, "tell", said.append)
    assert same(learn(seed=5, keep_every=2).lora, expected.lora)
    assert len(said) == 3 and "step 2 of the run 'sks' cannot be kept" in said[0] and "No space left" in said[0]


@pytest.mark.parametrize(("name", "said"), [("../x", "no name for a file"), (" ..", "no name for a file"), ("x" * 90, "outside")])
def test_a_run_s_name_that_no_file_can_have_is_refused_by_the_options(host, name, said):
    with pytest.raises(ValueError, match=f"run_name.*{said}"):
        host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL, run_name=name)


def test_vico_and_sefi_keep_files_that_their_own_loaders_take(host, fresh, small_set, embeddings):
    chosen, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL, keep_every=1)
    models = Path(host.folder_paths.models_dir)
    for kind in ("vico", "sefi"):
        emptied(models / kind)
    host.nodes["DreamMatcherViCoTrain"]().learn(*fresh, small_set, initial_word="robot", steps=2, word_rate=1e-2, block_rate=1e-3,
                                                seed=1, batch=1, regularisation=0.01, options=chosen)
    assert names(models / "vico") == ["sks-step00000001.safetensors", "sks-step00000002.safetensors"]
    loaded = host.nodes["DreamMatcherViCoLoad"]().load(fresh[1], "sks-step00000001.safetensors", "(in the file)")
    assert loaded["result"][0].about["steps"] == "1"
    image = host.nodes["ToyboxReference"]().draw(3, "robot", 1, "grass")[0]
    host.nodes["DreamMatcherSeFiTrain"]().learn(*fresh, image=image, identifier="<me>", class_word="robot",
                                                reference_prompt="a photo of a robot", resolution=64, steps=2, rate=1e-2,
                                                attention_weight=1.0, seed=1, options=chosen)
    assert names(models / "sefi") == ["me-step00000001.safetensors", "me-step00000002.safetensors"]
    assert host.nodes["DreamMatcherSeFiLoad"]().load("me-step00000002.safetensors")


def test_learn_easy_keeps_steps_where_that_is_wanted(host, pack, fresh, pictures, loras, monkeypatch):
    easy = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setitem(easy.BUDGETS, "quick", easy.TrainingBudget(2, 2))
    learned = host.nodes["DreamMatcherLearn"]().learn(*fresh, pictures, "robot", "quick", 1e-3, 1, keep_every=1)["result"][2]
    assert learned.about["run"] == "sks" and len(names(loras)) == 2
