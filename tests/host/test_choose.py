"""Choose: a step that a training has kept on its way, by the run's name or behind the training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_kept_steps import USUAL, emptied, same

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture(scope="module")
def folders(host) -> dict[str, Path]:
    """The folders of runs and of what is learned, with nothing of a run in them."""
    places = {"runs": host.folder / "output" / "dreammatcher" / "runs"}
    shutil.rmtree(places["runs"], ignore_errors=True)
    for kind in ("loras", "embeddings"):
        places[kind] = host.folder / "models" / kind
        places[kind].mkdir(parents=True, exist_ok=True)
        host.folder_paths.add_model_folder_path(kind, str(places[kind]))
        emptied(places[kind])
    return places


@pytest.fixture(scope="module")
def trained(host, pack, folders):
    """What a run of 4 steps has learned, every 2 of which are kept: weights and a word."""
    with torch.inference_mode():
        model, clip, vae = host.nodes["ToyboxLoader"]().load()
        draw = host.nodes["ToyboxReference"]().draw
        pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])[:, ::2, ::2]
        small = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 64, pictures)["result"][0]
        chosen, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL, keep_every=2)
        return host.nodes["DreamMatcherCustomDiffusion"]().learn(
            model, clip, vae, small, initial_word="robot", steps=4, rate=1e-2, seed=1, sizes=False, batch=1, options=chosen)[2]


@pytest.fixture
def choose(host, fresh, trained):
    def chosen(run_name="", step=0, learned=None):
        return host.nodes["DreamMatcherChoose"]().choose(*fresh[:2], run_name, step, learned)
    return chosen


def test_until_a_step_is_chosen_it_is_what_was_learned_and_the_node_shows_the_sheet(choose, fresh, trained, folders):
    done = choose(learned=trained)
    model, clip, learned, sheet = done["result"]
    assert learned is trained and model is not fresh[0] and model.patches
    assert done["ui"]["text"] == ["run sks, step 4, its end; kept steps: 2, 4"]
    assert done["ui"]["images"] == [{"filename": "sheet.png", "subfolder": "dreammatcher/runs/sks", "type": "output"}]
    assert sheet.shape == (1, 28 + 2 * 198, 96 + 198, 3)


def test_by_its_name_a_run_gives_its_last_step_as_it_was_saved(choose, trained, folders):
    learned = choose("sks")["result"][2]
    assert same(learned.lora, load_file(folders["loras"] / "sks-step00000004.safetensors"))
    assert torch.equal(learned.embeddings["sks"], trained.embeddings["sks"])
    assert learned.about == trained.about


@pytest.mark.parametrize("by", ["name", "link"])
def test_a_chosen_step_is_applied_and_can_be_saved(host, fresh, choose, trained, folders, by):
    model, clip, learned, _ = choose("sks", 2)["result"] if by == "name" else choose("", 2, trained)["result"]
    kept = load_file(folders["loras"] / "sks-step00000002.safetensors")
    assert same(learned.lora, kept) and learned.about["steps"] == "2" and len(model.patches) == len(kept)
    assert not torch.equal(learned.embeddings["sks"], trained.embeddings["sks"])
    cond = [host.nodes["CLIPTextEncode"]().encode(one, "a photo of a sks")[0][0][0] for one in (clip, fresh[1])]
    assert not torch.equal(*cond), "the text encoder knows the word of that step"
    saved = host.nodes["DreamMatcherSaveLearned"]().save(learned, "chosen")["result"][0]
    assert same(load_file(folders["loras"] / saved), kept)
    for kind in ("loras", "embeddings"):
        (folders[kind] / saved).unlink()


@pytest.mark.parametrize(("given", "said"), [
    (("sks", 3), r"step: 3 of the run 'sks' is not kept; there are 2, 4"),
    (("nobody", 0), r"run_name: no run called 'nobody' has kept a step; there is sks\. Set keep_every"),
    (("", 0), r"run_name: it is empty and nothing is connected to learned.*There is sks"),
    (("../sks", 0), "run_name: .*no name for a file"),
])
def test_runs_and_steps_that_are_not_there_are_refused_with_those_that_are(choose, given, said):
    with pytest.raises(ValueError, match=said):
        choose(*given)


def test_behind_a_training_that_kept_nothing_the_model_goes_on_and_says_so(pack, choose, trained, caplog):
    from dataclasses import replace

    plain = replace(trained, about={key: text for key, text in trained.about.items() if key != "run"})
    done = choose(learned=plain)
    assert done["result"][2] is plain and not done["ui"]["images"] and "Set keep_every" in caplog.text
    with pytest.raises(ValueError, match="step: 2 cannot be chosen"):
        choose("", 2, plain)


def test_a_file_that_is_gone_is_named_and_one_that_was_moved_is_found(choose, folders, tmp_path, host):
    path = folders["loras"] / "sks-step00000002.safetensors"
    path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match=r"step: its file .*sks-step00000002\.safetensors is gone"):
        choose("sks", 2)
    host.folder_paths.add_model_folder_path("loras", str(tmp_path))
    try:
        assert choose("sks", 2)["result"][2].lora
    finally:
        shutil.move(tmp_path / path.name, path)


def test_a_step_of_another_kind_of_model_is_refused(pack, choose, folders):
    from safetensors.torch import save_file

    path = folders["loras"] / "sks-step00000002.safetensors"
    content = path.read_bytes()
    save_file({name: torch.zeros(7, 7) if value.ndim == 2 else value for name, value in load_file(path).items()}, path,
              {"format": "pt"})
    try:
        with pytest.raises(ValueError, match="model: the run 'sks' has taught another kind of model"):
            choose("sks", 2)
    finally:
        path.write_bytes(content)


def test_the_node_runs_again_when_its_run_has_kept_another_step(host, trained, folders):
    changed, record = host.nodes["DreamMatcherChoose"].IS_CHANGED, folders["runs"] / "sks" / "run.json"
    before = [changed(run_name=name) for name in ("sks", "", None)]
    assert before == [changed(run_name=name) for name in ("sks", "", None)]
    record.write_text(record.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    after = [changed(run_name=name) for name in ("sks", "", None)]
    assert before[0] != after[0] and before[1] == after[1] and before[2] != after[2]


def test_a_damaged_record_and_a_sheet_that_is_gone_do_no_harm(choose, trained, folders):
    sheet, record = (folders["runs"] / "sks" / name for name in ("sheet.png", "run.json"))
    content = sheet.read_bytes(), record.read_bytes()
    try:
        sheet.unlink()
        done = choose("sks", 2)
        assert not done["ui"]["images"] and done["result"][3].shape[-1] == 3
        record.write_bytes(b"{")
        with pytest.raises(ValueError, match="no run called 'sks' has kept a step"):
            choose("sks", 2)
    finally:
        sheet.write_bytes(content[0])
        record.write_bytes(content[1])
