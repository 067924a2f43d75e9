"""The estimate of what a training takes, against what autograd really keeps."""

from __future__ import annotations

import logging

import pytest
import torch
from closeness import LEARNED, close
from kept_memory import kept_for_the_gradient

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


def kept_by(model, learning, low, text: bool, rows: int) -> int:
    """Bytes of storages that autograd keeps in a real pass, beside the model's weights."""
    seen = model.encode(["a photo of a robot"] * rows)
    with torch.inference_mode(False), torch.enable_grad():
        learned = {name: model.unet[name].detach().clone().requires_grad_() for name in learning}
        seen = type(seen)(seen.cross_attention.clone().requires_grad_(text))
        noisy = torch.randn(rows, 4, 16, 16)
    factors = [factor for one in low.values() for factor in (one.down, one.up)]
    with torch.inference_mode(False), torch.enable_grad(), kept_for_the_gradient() as kept:
        loss = model.predict(noisy, torch.full((rows,), 300), seen, {**learned, **low}).square().mean()
    assert loss.requires_grad
    return kept.beside(model.unet.values(), learned.values(), factors)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("what", ["attention", "everything", "a LoRA", "a word"])
def test_the_estimate_is_what_autograd_keeps(pack, fresh, what, rows):
    HostDenoiser = pack.module("dreammatcher.host.training.model").HostDenoiser
    estimate = pack.module("dreammatcher.host.training.estimate")
    model = HostDenoiser(fresh[0], fresh[1], (16, 16))
    learning = {"attention": [name for name in model.unet if ".attn" in name and name.endswith("weight")],
                "everything": [name for name, value in model.unet.items() if value.is_floating_point()]}.get(what, [])
    text, low = what == "a word", {}
    if what == "a LoRA":
        methods, settings = (pack.module(f"dreammatcher.training.{name}") for name in ("dreambooth", "settings"))
        with torch.inference_mode(False):
            low = methods.lora_of(model.unet, methods.UNET_TARGETS, settings.LoraSettings(), 1e-4, torch.Generator()).low_rank()
    estimated = estimate.activations(model, learning, low, text, rows, (16, 16), False)
    assert estimated == pytest.approx(kept_by(model, learning, low, text, rows), rel=0.15)
    saving = estimate.activations(HostDenoiser(fresh[0], fresh[1], (16, 16), checkpointing=True), learning, low, text, rows,
                                  (16, 16), False)
    assert saving < 0.6 * estimated


def learn(host, fresh, **chosen):
    draw = host.nodes["ToyboxReference"]().draw
    pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])
    training_set = host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 128, pictures)["result"][0]
    return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, training_set, "LoRA", 1, 1e-3, 0, **chosen)


def test_what_does_not_fit_is_refused_before_the_first_step_with_figures(host, pack, fresh, monkeypatch):
    monkeypatch.setattr(pack.module("dreammatcher.host.training.estimate"), "free_on", lambda device: 1 << 20)
    with pytest.raises(ValueError, match=r"about 0\.\d GB beside the model even with gradient checkpointing, and 0\.0 GB are "
                                         r"free on cpu.*smaller batch"):
        learn(host, fresh, batch=16)


def test_other_models_leave_the_device_before_a_training_is_refused(host, pack, fresh, monkeypatch):
    estimate, asked = pack.module("dreammatcher.host.training.estimate"), []
    monkeypatch.setattr(estimate, "free_on", lambda device: 1 << 40 if asked else 1 << 20)
    monkeypatch.setattr(estimate.comfy.model_management, "free_memory", lambda size, device, keep_loaded: asked.append(
        (size, device, [loaded.model for loaded in keep_loaded])))
    learn(host, fresh, batch=16)
    (size, device, kept), = asked
    assert size > 1 << 20 and device.type == "cpu" and any(one is fresh[0] for one in kept)


def test_no_training_fails_for_want_of_an_estimate(host, pack, fresh, monkeypatch, caplog):
    def fails(*_):
        raise TypeError("this attention wants real memory")

    monkeypatch.setattr(pack.module("dreammatcher.host.training.estimate"), "activations", fails)
    with caplog.at_level(logging.INFO):
        assert learn(host, fresh)[2].lora
    assert any("is not known here (TypeError: this attention wants real memory)" in one.getMessage() for one in caplog.records)


def test_the_estimate_is_printed_before_training(host, fresh, caplog):
    with caplog.at_level(logging.INFO):
        learn(host, fresh)
    said = [record.getMessage() for record in caplog.records]
    first = next(number for number, line in enumerate(said) if "GB beside the model" in line)
    assert "for activations" in said[first]


def test_checkpointing_learns_the_same(host, fresh):
    options = host.nodes["DreamMatcherTrainingOptions"]().make("AdamW", "constant", 0, 0.01, 1.0, 1, 0.0, 0.0, 0.0, "", 0,
                                                               "go on when queued again", gradient_checkpointing=True)[0]
    plain, saving = (learn(host, fresh, text_encoder=True, **more)[2].lora for more in ({}, {"options": options}))
    assert all(close(value, saving[name], LEARNED) for name, value in plain.items())
