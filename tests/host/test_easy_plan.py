"""Learn (Easy) plans before it draws class pictures, and says what a stop does before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

STEPS, CLASS = 3, 2


@pytest.fixture
def easy(host, pack, fresh, pictures, monkeypatch):
    """The node on two class pictures and three steps, with nothing drawn before."""
    module = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setitem(module.BUDGETS, "quick", module.TrainingBudget(STEPS, CLASS))
    shutil.rmtree(folder(host), ignore_errors=True)

    def learn(word="robot", **changes):
        return host.nodes["DreamMatcherLearn"]().learn(*fresh, pictures, word, "quick", 1e-3, 1, **changes)["result"]
    return learn


def folder(host) -> Path:
    return Path(host.folder_paths.get_output_directory()) / "dreammatcher" / "prior"


def drawn(host) -> int:
    return len(list(folder(host).rglob("*.png")))


def needs(pack, monkeypatch, plain: float, saving: float, free: list[float]):
    """Lets memory be short: what each way takes, and what is free at each question, in GB, the last for good."""
    estimate, asked = pack.module("dreammatcher.host.training.estimate"), []
    real = estimate.activations

    def activations(model, *given):
        assert real(model, *given) > 0
        asked.append(bool(model.checkpointing))
        return int((saving if model.checkpointing else plain) * estimate.GB)

    monkeypatch.setattr(estimate, "activations", activations)
    monkeypatch.setattr(estimate, "free_on", lambda device: int((free.pop(0) if len(free) > 1 else free[0]) * estimate.GB))
    return asked


@pytest.fixture
def checkpointed(pack, monkeypatch):
    """Counts how often blocks were made ready to run again."""
    model, used = pack.module("dreammatcher.host.training.model"), []
    real = model.recomputed
    monkeypatch.setattr(model, "recomputed", lambda *given: used.append(1) or real(*given))
    return used


def test_where_all_activations_fit_nothing_is_made_again(host, pack, easy, monkeypatch, checkpointed):
    asked = needs(pack, monkeypatch, 21.8, 1.8, [40.0])
    assert easy()[2].lora and not checkpointed and asked == [False, False] and drawn(host) == CLASS


def test_where_they_do_not_fit_they_are_made_again_and_it_learns_the_same(host, pack, easy, monkeypatch, checkpointed):
    plain = easy()[2].lora
    needs(pack, monkeypatch, 21.8, 1.8, [8.0])
    saving = easy()[2].lora
    assert len(checkpointed) >= STEPS and drawn(host) == CLASS
    largest = max(float(value.abs().max()) for value in plain.values())
    assert all((value - saving[name]).abs().max() <= 1e-4 * largest for name, value in plain.items())


def test_where_nothing_fits_it_is_refused_before_a_class_picture_is_drawn(host, pack, easy, monkeypatch):
    needs(pack, monkeypatch, 21.8, 9.8, [8.0])
    with pytest.raises(ValueError, match=r"memory: .*9\.8 GB beside the model even with gradient checkpointing, and 8\.0 GB are "
                                         r"free .*smaller pictures"):
        easy()
    assert drawn(host) == 0


def test_it_is_never_refused_after_class_pictures_are_drawn(host, pack, easy, monkeypatch, caplog):
    needs(pack, monkeypatch, 21.8, 1.8, [40.0, 1.0])
    assert easy()[2].lora and drawn(host) == CLASS
    assert "it is tried all the same" in caplog.text


def test_memory_that_became_short_meanwhile_turns_checkpointing_on(pack, easy, monkeypatch, checkpointed):
    needs(pack, monkeypatch, 21.8, 1.8, [40.0, 8.0])
    assert easy()[2].lora and len(checkpointed) >= STEPS


@pytest.mark.parametrize(("changes", "said"), [
    ({"identifier": "robot"}, "class_word: 'robot' holds the identifier 'robot'"),
    ({"word": "toy sks", "identifier": "sks"}, "class_word: 'toy sks' holds the identifier 'sks'"),
    ({"masks": torch.zeros(2, 128, 128)}, "mask: nothing of it is left"),
])
def test_what_training_would_refuse_is_refused_before_a_class_picture_is_drawn(host, easy, changes, said):
    with pytest.raises(ValueError, match=said):
        easy(**changes)
    assert drawn(host) == 0


def test_a_model_that_cannot_be_trained_is_refused_before_a_class_picture_is_drawn(host, pack, fresh, pictures, monkeypatch):
    shutil.rmtree(folder(host), ignore_errors=True)
    model = host.nodes["ModelSamplingDiscrete"]().patch(fresh[0], "lcm", False)[0]
    with pytest.raises(ValueError, match="model: training knows models that predict noise"):
        host.nodes["DreamMatcherLearn"]().learn(model, *fresh[1:], pictures, "robot", "quick", 1e-3, 1)
    assert drawn(host) == 0


def test_prior_set_refuses_a_class_that_dreambooth_would_refuse(host, fresh, pictures):
    training_set = host.nodes["DreamMatcherTrainingSet"]().make("robot", "robot", "photo", 128, pictures)["result"][0]
    shutil.rmtree(folder(host), ignore_errors=True)
    with pytest.raises(ValueError, match="class_word: 'robot' holds the identifier"):
        host.nodes["DreamMatcherPriorSet"]().make(*fresh, training_set, 2, 2, 5.0, "euler", "normal", 0)
    assert drawn(host) == 0


def interrupted(pack):
    return pack.module("dreammatcher.host.graph.progress").Interrupted


def test_a_stop_while_class_pictures_are_drawn_keeps_them_says_so_and_goes_on_later(host, pack, easy, monkeypatch, caplog):
    import comfy.model_management
    import comfy.utils

    update = comfy.utils.ProgressBar.update_absolute

    def interrupt(bar, value, total=None, *rest):
        if (value, total) == (1, CLASS):
            comfy.model_management.interrupt_current_processing()
        update(bar, value, total, *rest)

    with monkeypatch.context() as patch, pytest.raises(interrupted(pack)):
        patch.setattr(comfy.utils.ProgressBar, "update_absolute", interrupt)
        easy()
    assert drawn(host) == 1
    assert "nothing is learned yet, so the graph stops. 1 of 2 pictures are kept" in caplog.text
    kept = {path: path.read_bytes() for path in folder(host).rglob("*.png")}
    assert easy()[2].about["steps"] == str(STEPS) and drawn(host) == CLASS
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_a_stop_between_class_pictures_and_the_first_step_stops_the_graph_and_says_so(host, pack, easy, monkeypatch, caplog):
    import comfy.model_management

    run = pack.module("dreammatcher.host.training.run")
    real = run.check_memory

    def check(*given, **named):
        settings = real(*given, **named)
        comfy.model_management.interrupt_current_processing()
        return settings

    with monkeypatch.context() as patch, pytest.raises(interrupted(pack)):
        patch.setattr(run, "check_memory", check)
        easy()
    assert drawn(host) == CLASS and "stopped before the first step: nothing is learned yet" in caplog.text
    comfy.model_management.throw_exception_if_processing_interrupted()  # taken: the next graph runs
    assert easy()[2].about["steps"] == str(STEPS)


def test_the_sample_s_prompt_names_the_subject_where_the_class_stands_alone(pack, fresh, pictures, monkeypatch):
    module, seen = pack.module("dreammatcher.host.training.easy"), []
    monkeypatch.setattr(module, "plan_dreambooth", lambda *given: seen.append(given[-2].sample_prompt) or 1 / 0)
    for prompt, wanted in (("a woman and a man", "a woman and a sks man"), ("a sks man", "a sks man"),
                           ("", "a photo of a sks man"), ("a woman", "a woman")):
        with pytest.raises(ZeroDivisionError):
            module.learn_subject(*fresh, pictures, "man", "quick", 1e-3, 1, "sks", None, prompt)
        assert seen.pop() == wanted
