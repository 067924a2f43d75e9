"""What a node shows while it trains."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

STEPS = 4


def options(host, **changes):
    chosen = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
                  min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again")
    return host.nodes["DreamMatcherTrainingOptions"]().make(**{**chosen, **changes})[0]


def dreambooth(host, fresh, training_set, **changes):
    return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, "LoRA", STEPS, 1e-3, 1, **changes)


@pytest.fixture
def previews(monkeypatch):
    """What trainings of STEPS steps show on the node, as (step, preview)."""
    import comfy.utils

    shown, update = [], comfy.utils.ProgressBar.update_absolute

    def watch(bar, value, total=None, preview=None):
        if total == STEPS and preview is not None:
            shown.append((value, preview))
        update(bar, value, total)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", watch)
    return shown


def test_without_options_the_node_shows_curve_sample_and_time_left(host, pack, fresh, training_set, previews, monkeypatch):
    shown, said = pack.module("dreammatcher.host.training.shown"), []
    plain = dreambooth(host, fresh, training_set, options=options(host))[2].lora
    previews.clear()
    curve = shown.curve
    monkeypatch.setattr(shown, "curve", lambda losses, steps, left: said.append(left) or curve(losses, steps, left))
    learned = dreambooth(host, fresh, training_set)[2].lora
    step, (kind, picture, _) = previews[0]
    assert step == 1 and kind == "JPEG" and picture.width > picture.height
    assert len(picture.crop((picture.width - picture.height, 0, *picture.size)).getcolors(1 << 20)) > 50, "a sample"
    assert said and all(text.endswith(" left") for text in said)
    assert all(torch.equal(value, learned[name]) for name, value in plain.items()), "what is shown changes nothing"


def test_options_that_want_no_samples_show_the_loss_alone(host, pack, fresh, training_set, previews, monkeypatch):
    shown = pack.module("dreammatcher.host.training.shown")
    monkeypatch.setattr(shown, "sample", lambda *_: pytest.fail("a sample was drawn"))
    monkeypatch.setattr(shown, "EVERY", 0.0)
    monkeypatch.setattr(shown, "SHARE", 1e9)
    dreambooth(host, fresh, training_set, options=options(host, sample_prompt="a sks robot"))
    assert [step for step, _ in previews] == list(range(1, STEPS + 1))
    assert {picture.size for _, (_, picture, _) in previews} == {(640, 360)}


def test_samples_that_nobody_asked_for_take_little_of_the_time(host, pack, fresh, training_set, monkeypatch):
    shown, drawn = pack.module("dreammatcher.host.training.shown"), []
    real = shown.sample
    monkeypatch.setattr(shown, "sample", lambda *given: drawn.append(1) or real(*given))
    monkeypatch.setattr(shown, "SHARE", 0.0)
    dreambooth(host, fresh, training_set)
    assert len(drawn) == 1, "the first one only"


def test_a_sample_that_nobody_asked_for_never_ends_a_training_for_want_of_memory(host, pack, fresh, training_set, monkeypatch):
    shown = pack.module("dreammatcher.host.training.shown")

    def full(*_):
        raise shown.OutOfMemory("no memory")

    monkeypatch.setattr(shown, "sample", full)
    assert dreambooth(host, fresh, training_set)[2].about["steps"] == str(STEPS)
    with pytest.raises(shown.OutOfMemory):
        dreambooth(host, fresh, training_set, options=options(host, sample_prompt="a sks robot", sample_every=1))
