"""Transformers taught by DoRA, LoHa and LoKr, and of several subjects at once: flows, files of Load LoRA, and going on."""

from __future__ import annotations

import json

import pytest
import torch
from closeness import RUN, close
from flow_world import LEARNING, learner, small_z
from test_adapters import FORMS, PLAIN
from test_guidance import in_inference_mode
from test_kept_steps import USUAL
from test_training_transformers import denoiser_of, noisy_of, targets
from transformers_world import drawn, prompt_of, transformer
from world import prompt, same_weights, weights

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture(autouse=True)
def told(pack, monkeypatch):
    """The messages on nodes. Memory, most of so short a training, has tests of its own."""
    said = []
    for name in ("run", "going_on", "learn"):
        monkeypatch.setattr(pack.module(f"dreammatcher.host.training.{name}"), "tell", said.append)
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, chosen, *_, **__: chosen)
    return said


@pytest.fixture
def z(pack, toybox):
    """MODEL, CLIP and VAE."""
    return small_z(pack), *toybox[1:]


@pytest.fixture
def options(host):
    def chosen(algorithm="LoRA", **more):
        plain, = host.nodes["DreamMatcherTrainingOptions"]().make(**USUAL)
        details = {**PLAIN, "feed_forward": True, "algorithm": algorithm, **more}
        return host.nodes["DreamMatcherTrainingDetails"]().make(**details, options=plain)[0]
    return chosen


@pytest.mark.parametrize("name", LEARNING)
def test_the_stock_loader_computes_from_every_form_what_the_model_saw_while_it_learned(pack, toybox, name):
    """Every layer of a family's transformer, by each form; and the model's prediction."""
    import comfy.sd

    module = {part: pack.module(f"dreammatcher.training.{part}") for part in ("dreambooth", "export", "settings")}
    names = pack.module("dreammatcher.host.training.names").unet_names
    model, (text, extra) = in_inference_mode(transformer(name)), prompt_of(name, 1)[0]
    conditioning = pack.module("dreammatcher.subject").Conditioning(text, extra.get("pooled_output"))
    for algorithm in FORMS:
        denoiser = denoiser_of(pack, model, toybox[1])
        noisy, times = noisy_of(denoiser, 1), torch.tensor([300])
        generator = torch.Generator().manual_seed(4)
        with torch.inference_mode(False), torch.enable_grad():
            rank = module["settings"].LoraSettings(2, 1.0)
            learned = module["dreambooth"].lora_of(denoiser.unet, targets(pack, denoiser), rank, 1e-2, generator,
                                                   algorithm=algorithm)
            with torch.no_grad():
                for value in learned.parameters():
                    value.add_(0.1 * torch.randn(value.shape, generator=generator))
            said = denoiser.predict(noisy, times, conditioning, learned.weights(denoiser.unet))
            said.square().mean().backward()
            seen = {key: value.detach() for key, value in learned.weights(denoiser.unet).items()}
        moved = [key for key in learned.shapes if any(value.grad is not None and value.grad.any()
                                                      for value in learned.parts(key).values())]
        assert len(moved) > 0.8 * len(learned.shapes), "the last layers of some families have text that nobody reads"
        tensors = module["export"].lora_tensors(learned, names(model.model))
        patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
        assert len(patched.patches) >= len({key.rpartition(".")[0] for key in learned.shapes}), "it takes every one"
        with torch.inference_mode(False):
            stock = denoiser_of(pack, patched, toybox[1])
            for key, value in seen.items():
                assert (stock.unet[key] - value).norm() < 1e-4 * value.norm(), (algorithm, key)
            assert close(stock.predict(noisy, times, conditioning, {}), said.detach(), RUN)


@pytest.mark.parametrize("algorithm", FORMS)
def test_load_lora_gives_from_the_saved_file_what_the_graph_gave_and_a_training_goes_on_from_it(
        host, z, training_set, options, model_folder, algorithm):
    model_folder("loras")
    learn, before = learner(host, z, training_set), weights(z[0])
    model, _, learned, _ = learn(options=options(algorithm), rate=2e-2)
    name = host.nodes["DreamMatcherSaveLearned"]().save(learned, f"flow {algorithm}")["result"][0]
    stock, _ = host.nodes["LoraLoader"]().load_lora(z[0], z[1], name, 1.0, 1.0)
    positive, negative = prompt(1), prompt(2)
    graph, file, plain = (drawn(one, positive, negative, 16, 16) for one in (model, stock, z[0]))
    assert (graph - plain).norm() > 0.01 * plain.norm() and (file - graph).norm() < 0.02 * (graph - plain).norm()
    assert same_weights(z[0], before)
    loaded = host.nodes["DreamMatcherLoadLearned"]().load(z[0], z[1], name, 1.0, 1.0)["result"]
    assert close(drawn(loaded[0], positive, negative, 16, 16), file, RUN)
    arguments = json.loads(learned.about["ss_network_args"])
    assert arguments["algo"] == {"DoRA": "lora"}.get(algorithm, algorithm.lower())
    begun = learn(options=options(algorithm), steps=1, rate=1e-12, begin_from=loaded[2])[2]
    assert begun.lora.keys() == learned.lora.keys()
    assert all((value - learned.lora[key]).norm() <= 2e-3 * value.norm() + 1e-7 for key, value in begun.lora.items()), "halves"
    with pytest.raises(ValueError, match=f"is changed by a {algorithm}, and a plain LoRA learns here"):
        learn(options=options(), begin_from=learned)


@pytest.fixture
def sets(host):
    """Sets by word: two pictures of a robot, three of a bird, and class pictures of both."""
    draw, make = host.nodes["ToyboxReference"]().draw, host.nodes["DreamMatcherTrainingSet"]().make

    def made(word, kind, poses):
        pictures = torch.cat([draw(3, kind, pose, "grass")[0] for pose in range(poses)])[:, ::2, ::2]
        return make(word, kind, "photo", 64, pictures)["result"][0]

    def joined(*chosen):
        return host.nodes["DreamMatcherJoinSets"]().join(
            **{f"training_set_{number}": one for number, one in enumerate(chosen, 1)})["result"][0]

    return joined(made("sks", "robot", 2), made("abc", "bird", 3)), joined(made("", "robot", 2), made("", "bird", 2))


@pytest.mark.parametrize("algorithm", ["LoRA", "LoKr"])
def test_a_transformer_learns_several_subjects_in_one_file_each_by_its_word(host, pack, z, sets, options, monkeypatch, algorithm):
    said = []
    encode = pack.module("dreammatcher.host.training.model").HostDenoiser.encode

    def noted(self, captions, *given, **named):
        said.extend(captions)
        return encode(self, captions, *given, **named)

    monkeypatch.setattr(pack.module("dreammatcher.host.training.model").HostDenoiser, "encode", noted)
    both, classes = sets
    model, _, learned, _ = learner(host, z, both)(options=options(algorithm), prior_set=classes, steps=3, batch=2, rate=1e-2)
    assert {"a photo of a sks robot", "a photo of a abc bird", "a photo of a robot", "a photo of a bird"} <= set(said)
    assert learned.about["subject"] == "sks robot, abc bird" and all(torch.isfinite(one).all() for one in learned.lora.values())
    alone = learner(host, z, both.parts[0])(options=options(algorithm), steps=3, batch=2, rate=1e-2)[2]
    assert alone.lora.keys() == learned.lora.keys() and any(
        not torch.equal(value, alone.lora[key]) for key, value in learned.lora.items())
    positive, negative = prompt(1), prompt(2)
    assert not close(drawn(model, positive, negative, 16, 16), drawn(z[0], positive, negative, 16, 16), RUN)
