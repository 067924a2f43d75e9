"""DoRA, LoHa and LoKr on the host: its own Load LoRA computes from their files what the training computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_every_option import PLAIN, USUAL
from test_kept_steps import runs  # noqa: F401  a fixture
from test_lora_files import changed
from world import picture

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

FORMS = ("DoRA", "LoHa", "LoKr")
EVERY = dict(feed_forward=True, projections=True, convolutions=True)


@pytest.fixture(autouse=True)
def told(pack, monkeypatch):
    """The messages about going on. Memory, most of so short a training, has tests of its own."""
    said = []
    monkeypatch.setattr(pack.module("dreammatcher.host.training.going_on"), "tell", said.append)
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, chosen, *_, **__: chosen)
    return said


@pytest.fixture
def folder(model_folder):
    folder = Path(model_folder("loras"))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return folder


@pytest.fixture
def learn(host, fresh, small_set):
    def learned(algorithm, options=None, details=None, steps=2, **given):
        chosen, = host.nodes["DreamMatcherTrainingOptions"]().make(**{**USUAL, **(options or {})})
        chosen, = host.nodes["DreamMatcherTrainingDetails"]().make(**{**PLAIN, **(details or {}), "algorithm": algorithm},
                                                                   options=chosen)
        usual = dict(kind="LoRA", steps=steps, rate=2e-2, seed=1, rank=2, options=chosen)
        return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, small_set, **{**usual, **given})
    return learned


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("algorithm", FORMS)
def test_the_host_computes_from_the_tensors_what_the_model_saw_while_it_learned(pack, fresh, algorithm, checkpointing):
    """Every weight, linear layers, convolutions and the text encoder's, and the model's prediction."""
    import comfy.sd

    module = {name: pack.module(f"dreammatcher.training.{name}") for name in ("details", "dreambooth", "export", "settings")}
    model, clip, _ = fresh
    learner = pack.module("dreammatcher.host.training.model").HostDenoiser
    names = pack.module("dreammatcher.host.training.names")
    generator = torch.Generator().manual_seed(4)
    noisy, times = picture(3, 8, 8), torch.tensor([400])
    with torch.inference_mode(False), torch.enable_grad():
        denoiser = learner(model, clip, (8, 8), checkpointing=checkpointing)
        layers = module["details"].Layers(True, True, True, True)
        parts = {}
        for part, base, targets in (("unet", denoiser.unet, module["dreambooth"].unet_targets(denoiser.unet, layers)),
                                    ("text", denoiser.text, module["dreambooth"].text_targets(layers))):
            parts[part] = module["dreambooth"].lora_of(base, targets, module["settings"].LoraSettings(2, 1.0), 1e-2, generator,
                                                       algorithm=algorithm)
            with torch.no_grad():
                for value in parts[part].parameters():
                    value.add_(0.1 * torch.randn(value.shape, generator=generator))
        text, unet = parts["text"].weights(denoiser.text), parts["unet"].weights(denoiser.unet)
        plain = denoiser.predict(noisy, times, denoiser.encode(["a robot"]), {}).detach()
        seen = denoiser.predict(noisy, times, denoiser.encode(["a robot"], text), unet)
        gradients = torch.autograd.grad(seen.square().mean(), [*parts["unet"].parameters(), *parts["text"].parameters()])
        assert all(one.isfinite().all() and one.norm() > 0 for one in gradients)
        tensors = {**module["export"].lora_tensors(parts["unet"], names.unet_names(model.model)),
                   **module["export"].lora_tensors(parts["text"], names.text_names(clip.cond_stage_model))}
        wanted = {**{f"diffusion_model.{name}": value.detach().clone() for name, value in unet.items()},
                  **{name: value.detach().clone() for name, value in text.items()}}
    assert any(value.ndim == 4 for value in unet.values()) and len(unet) > 40 and len(text) > 5
    patched, taught = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
    assert len(patched.patches) == len(unet) and len(taught.patcher.patches) == len(text), "the stock loader takes every one"
    with torch.inference_mode(False):
        stock = learner(patched, taught, (8, 8))
        weights = {**{f"diffusion_model.{name}": value for name, value in stock.unet.items()}, **stock.text}
        for name, value in wanted.items():
            assert (weights[name] - value).norm() < 1e-4 * value.norm(), name
        there = stock.predict(noisy, times, stock.encode(["a robot"]), {}).detach()
    effect = (seen.detach() - plain).norm()
    assert (there - seen.detach()).norm() < 1e-3 * effect and effect > 0.02 * plain.norm()


@pytest.mark.parametrize("algorithm", FORMS)
def test_load_lora_gives_from_the_saved_file_what_the_graph_gave(host, fresh, learn, folder, algorithm):
    model, clip, _ = fresh
    taught, _, learned, _ = learn(algorithm, details=EVERY, text_encoder=True)
    name = host.nodes["DreamMatcherSaveLearned"]().save(learned, f"my {algorithm}")["result"][0]
    ends = {key.partition(".")[2] for key in load_file(folder / name)}
    assert ends == {"DoRA": {"lora_up.weight", "lora_down.weight", "alpha", "dora_scale"},
                    "LoHa": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"},
                    "LoKr": {"lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_w2", "alpha"} & ends}[algorithm]
    stock, _ = host.nodes["LoraLoader"]().load_lora(model, clip, name, 1.0, 1.0)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    positive, negative = ([[torch.randn(1, 77, 96, generator=torch.Generator().manual_seed(seed)), {}]] for seed in (1, 2))
    sample = host.nodes["KSampler"]().sample
    plain, graph, file = (sample(each, 5, 3, 1.0, "euler", "normal", positive, negative, latent)[0]["samples"]
                          for each in (model, taught, stock))
    assert (graph - plain).norm() > 0.01 * plain.norm() and (file - graph).norm() < 0.02 * (graph - plain).norm()
    ours = changed(host, name, model, clip)
    theirs = changed(host, name, model, clip, "LoraLoader")
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    arguments = json.loads(learned.about["ss_network_args"])
    assert learned.about["ss_network_module"] == "lycoris.kohya" and arguments["algo"] == {"DoRA": "lora"}.get(
        algorithm, algorithm.lower())


@pytest.mark.parametrize("algorithm", FORMS)
def test_a_step_that_was_kept_is_chosen_and_gone_on_from(host, fresh, learn, runs, folder, told, algorithm):  # noqa: F811
    keep = {"keep_every": 1, "when_it_differs": "ask"}
    learned = learn(algorithm, keep)[2]
    back = host.nodes["DreamMatcherChoose"]().choose(*fresh[:2], run_name="sks", step=2)["result"][2]
    assert back.lora.keys() == learned.lora.keys()
    assert all((value.float() - learned.lora[key]).norm() <= 1e-3 * learned.lora[key].norm() for key, value in back.lora.items())
    learn(algorithm, keep, steps=3)
    assert any("goes on from step 2 of the run 'sks', with a fresh optimiser" in text for text in told)
    with pytest.raises(ValueError, match=f"algorithm {algorithm} → LoRA"):
        learn("LoRA", keep, steps=4)
    begun = learn(algorithm, steps=1, rate=1e-12, begin_from=learned)[2]
    assert all((value - learned.lora[key]).norm() <= 1e-5 * value.norm() + 1e-7 for key, value in begun.lora.items())
    with pytest.raises(ValueError, match=f"is changed by a {algorithm}, and a plain LoRA learns here"):
        learn("LoRA", begin_from=learned)


def test_a_run_from_before_there_were_other_forms_is_a_plain_lora(pack):
    differences = pack.module("dreammatcher.host.training.going_on").differences
    before, after = {"method": "DreamBooth", "rank": 4}, {"method": "DreamBooth", "rank": 4, "algorithm": "LoRA"}
    assert not differences(before, after)
    assert differences(before, {**after, "algorithm": "LoKr"}) == {"algorithm": "algorithm LoRA → LoKr"}


def test_the_estimate_counts_what_the_model_sees_and_no_factor_twice(pack, fresh, small_set):
    """A DoRA stands in for whole weights, so it takes more than a LoRA of its rank and less than a full training."""
    module = {name: pack.module(f"dreammatcher.host.training.{name}") for name in ("estimate", "dreambooth", "model", "run")}
    settings = pack.module("dreammatcher.training.settings")
    details = pack.module("dreammatcher.training.details").Details
    needs = {}
    with module["run"].ready(*fresh, small_set, None, settings.TrainingSettings(), settings.Running()) as work:
        names = module["dreambooth"].names_of(*fresh[:2])
        for kind, algorithm in (("LoRA", "LoRA"), ("LoRA", "DoRA"), ("LoRA", "LoHa"), ("LoRA", "LoKr"), ("full", "LoRA")):
            recipe = module["dreambooth"].recipe_of(work, None, names, module["dreambooth"].DreamBoothSettings(kind),
                                                    settings.ObjectiveSettings(), 1, details(algorithm=algorithm))
            need = module["estimate"].need_of(recipe, work.denoiser, settings.TrainingSettings(), 1, (8, 8))
            needs[kind if kind == "full" else algorithm] = need.learned
    assert all(needs["LoRA"] < needs[name] < needs["full"] for name in FORMS), needs
