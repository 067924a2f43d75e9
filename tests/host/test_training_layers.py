"""Layers that a LoRA learns: the host's model computes with factors what it computes with the sum, and its loader takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_every_option import PLAIN, USUAL

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

KINDS = ("attention", "feed_forward", "convolutions", "projections")


@pytest.fixture(scope="module")
def toybox(host):
    with torch.inference_mode():
        return host.nodes["ToyboxLoader"]().load()


@pytest.fixture(scope="module")
def learn(host, pack, toybox):
    """A LoRA of chosen layers after two steps, as tensors of its file."""
    draw, make = host.nodes["ToyboxReference"]().draw, host.nodes["DreamMatcherTrainingSet"]().make
    with torch.inference_mode():
        pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])[:, ::2, ::2]
        chosen = make("sks", "robot", "photo", 64, pictures)["result"][0]

    def learned(text: bool = False, **details: object) -> dict[str, torch.Tensor]:
        options, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL)
        options, = host.nodes["DreamMatcherTrainingDetails"]().make(**{**PLAIN, "attention": False, **details}, options=options)
        with torch.inference_mode():
            return host.nodes["DreamMatcherDreamBooth"]().learn(*toybox, chosen, "LoRA", 2, 1e-2, 1, rank=2, text_encoder=text,
                                                                options=options)[2].lora

    # the estimate of memory is most of so short a training, and has tests of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, settings, *_, **__: settings)
        yield learned


def modules_of(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name.rpartition(".lora_")[0] for name in tensors if ".lora_down" in name}


@pytest.mark.parametrize("kind", KINDS)
def test_the_stock_loader_takes_every_layer_that_learns(pack, toybox, learn, kind):
    tensors = learn(**{kind: True})
    model, clip, _ = toybox
    taken = pack.module("dreammatcher.host.training.lora_file").taken_by(model, clip, tensors)
    assert not taken.left_out() and taken.tensors.keys() == tensors.keys()
    import comfy.model_management  # not before the host was booted
    import comfy.sd

    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
        assert len(patched.patches) == len(modules_of(tensors)) > 0
        states = []
        for loaded in (model, patched, model):
            comfy.model_management.load_models_gpu([loaded])
            states.append({name: value.clone() for name, value in loaded.model.state_dict().items() if name in patched.patches})
        before, after, again = states
    names = {value: key for key, value in pack.module("dreammatcher.host.training.names").unet_names(model.model).items()}
    assert all(torch.equal(value, again[name]) for name, value in before.items())
    for module in modules_of(tensors):
        key = f"diffusion_model.{names[module]}"
        down, up, alpha = (tensors[f"{module}.{part}"].float() for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        added = (alpha / 2) * (up.flatten(1) @ down.flatten(1)).view_as(before[key])
        assert (after[key] - before[key] - added).norm() < 1e-4 * before[key].norm() + 1e-3 * added.norm()


def test_kinds_of_layers_are_apart_and_together_all_that_learns(learn):
    apart = [modules_of(learn(**{kind: True})) for kind in KINDS]
    together = modules_of(learn(**dict.fromkeys(KINDS, True)))
    assert set.union(*apart) == together and sum(map(len, apart)) == len(together)
    ends = {kind: {module.rpartition("_blocks_")[2] or module for module in modules} for kind, modules in zip(KINDS, apart)}
    assert all("attn" in end for end in ends["attention"]) and all("ff_net" in end for end in ends["feed_forward"])
    assert all("proj" in end for end in ends["projections"])


def test_the_text_encoder_learns_its_attention_and_its_feed_forward_layers(learn):
    def text(**details: object) -> set[str]:
        return {module.rpartition("_")[2] for module in modules_of(learn(True, **details)) if module.startswith("lora_te")}

    assert text(attention=True) == {"proj"} and text(feed_forward=True) == {"fc1", "fc2"}
    with pytest.raises(ValueError, match="text_encoder: none of the layers .* turn attention or feed_forward on"):
        text(convolutions=True)


def test_blocks_are_chosen_by_their_names_and_wrong_ones_are_named(learn):
    every, middle = modules_of(learn(attention=True)), modules_of(learn(attention=True, blocks="mid"))
    assert middle and middle < every and all("mid_block" in module for module in middle)
    outs = modules_of(learn(convolutions=True, blocks="OUT00, OUT01"))
    assert outs and all("up_blocks" in module for module in outs)
    with pytest.raises(ValueError, match="blocks: 'IN44' has none of the chosen layers in this model; choose among .*M00"):
        learn(attention=True, blocks="IN44")
    with pytest.raises(ValueError, match="blocks: 'MIDDLE' is no block's name; write names as IN04, M00 and OUT11"):
        learn(attention=True, blocks="middle")
    with pytest.raises(ValueError, match="attention, feed_forward, convolutions and projections: all are off"):
        learn()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_factors_give_what_the_sum_gives_in_every_layer(pack, toybox, checkpointing):
    parts, weights = pack.module("dreammatcher.training.dreambooth"), pack.module("dreammatcher.weights")
    layers, settings = pack.module("dreammatcher.training.details").Layers, pack.module("dreammatcher.training.settings")
    model, clip, _ = toybox
    with torch.inference_mode(False), torch.enable_grad():
        denoiser = pack.module("dreammatcher.host.training.model").HostDenoiser(model, clip, (8, 8), checkpointing=checkpointing)
        base, generator = denoiser.unet, torch.Generator().manual_seed(1)
        targets = parts.unet_targets(base, layers(True, True, True, True))
        lora = parts.lora_of(base, targets, settings.LoraSettings(2), 1.0, generator)
        with torch.no_grad():
            for _, up in lora.factors().values():
                up.copy_(0.05 * torch.randn(up.shape, generator=generator))
        low = lora.weights(base)
        assert any(value.down.ndim == 4 for value in low.values()) and any(value.down.ndim == 2 for value in low.values())
        noisy, times = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 500])
        seen = denoiser.encode(["a robot", "a bird"])
        whole = {name: value for name, value in weights.dense(base, low).items() if name in low}
        plain, factored, summed = (denoiser.predict(noisy, times, seen, each) for each in ({}, low, whole))
        assert (factored - summed).norm() < 1e-4 * (summed - plain).norm() and (summed - plain).norm() > 0.05 * plain.norm()
        gradients = [torch.autograd.grad(each.square().mean(), list(lora.parameters()), retain_graph=True)
                     for each in (factored, summed)]
        for one, other in zip(*gradients, strict=True):
            assert (one - other).norm() < 2e-3 * other.norm() + 1e-8


def test_a_training_keeps_its_name_while_its_finer_choices_are_the_defaults(pack):
    jobs, choices = pack.module("dreammatcher.host.training.job_name"), pack.module("dreammatcher.training.details")
    settings = pack.module("dreammatcher.training.settings")
    older = {"prior_weight": 1.0, "min_snr_gamma": 0.0, "masked": False}
    assert jobs.job_of("id", settings.ObjectiveSettings()) == jobs.job_of("id", older)
    assert jobs.job_of("id", settings.ObjectiveSettings(noise=choices.Noise(offset=0.1))) != jobs.job_of("id", older)

    def named(details):
        return jobs.named("id", "base", "DreamBooth", rate=jobs.Rate(1e-3), details=details)

    plain = choices.Details()
    others = {"text_until": replace(plain, text=choices.TextEncoder(until=0.5)),
              "feed_forward": replace(plain, layers=choices.Layers(feed_forward=True)),
              "blocks": replace(plain, layers=choices.Layers(blocks=("IN04", "M00"))),
              "rank_dropout": replace(plain, rank_dropout=0.1), "algorithm": replace(plain, algorithm="DoRA"),
              "noise_offset": replace(plain, noise=choices.Noise(offset=0.1)),
              "timesteps": replace(plain, noise=choices.Noise(times="late")),
              "caption_dropout": replace(plain, captions=choices.CaptionChanges(0.1)),
              "allow_one_picture": replace(plain, one_picture=True)}
    names = [named(one).job for one in (plain, *others.values())]
    assert len(set(names)) == len(names) and names[0] == jobs.job_of("id", "DreamBooth", jobs.Rate(1e-3)).job
    differences = pack.module("dreammatcher.host.training.going_on").differences
    assert [list(differences(named(plain).said, named(one).said)) for one in others.values()] == [[name] for name in others]
    assert differences(named(plain).said, named(others["blocks"]).said) == {"blocks": "blocks none → IN04, M00"}
    faster, slower = (named(replace(plain, text=choices.TextEncoder(rate=rate))) for rate in (1e-5, 2e-5))
    assert faster.kin == slower.kin, "a run that gave up goes on at another rate of the text encoder"
    assert differences(faster.said, slower.said) == {"text_rate": "text_rate 1e-05 → 2e-05"}


@pytest.mark.parametrize(("method", "details", "said"), [
    ("Textual Inversion", {"caption_dropout": 0.1}, "caption_dropout: Textual Inversion cannot use"),
    ("Custom Diffusion", {"rank_dropout": 0.1}, "rank_dropout: Custom Diffusion cannot use"),
    ("DreamBooth full", {"feed_forward": True}, "feed_forward.*DreamBooth .full. cannot use"),
    ("DreamBooth LoRA", {"text_until": 0.5}, "text_until: DreamBooth .LoRA. cannot use"),
    ("DreamBooth LoRA", {"caption_shuffle": True}, "caption_shuffle: no caption")])
def test_a_job_is_refused_for_what_its_training_would_refuse_and_else_travels_with_its_details(host, pack, method, details, said):
    draw, make = host.nodes["ToyboxReference"]().draw, host.nodes["DreamMatcherTrainingSet"]().make
    with torch.inference_mode():
        pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])[:, ::2, ::2]
        chosen = make("sks", "robot", "photo", 64, pictures)["result"][0]
    write, choose = host.nodes["DreamMatcherTrainingJob"]().write, host.nodes["DreamMatcherTrainingDetails"]().make
    options, = choose(**{**PLAIN, **details})
    with pytest.raises(ValueError, match=said):
        write("Toybox", chosen, method, "refused", 2, 1e-3, 1, options=options)
    options, = choose(**{**PLAIN, "noise_offset": 0.1, "timesteps": "late"})
    file, = write("Toybox", chosen, method, "with details", 2, 1e-3, 1, options=options)["result"]
    read = pack.module("dreammatcher.training.job").read(Path(file))
    assert read.options.details == options.details and read.options.objective().noise == options.details.noise
