"""Training diffusion transformers in the host's own classes: flows, LoRAs of attention and feed-forward, files of Load LoRA."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from closeness import RUN, close
from flow_world import LEARNING, learner, small_z
from kept_memory import kept_for_the_gradient
from safetensors import safe_open
from test_guidance import in_inference_mode
from test_training_model import agree, finite_difference, overrides
from transformers_world import drawn, prompt_of, transformer
from world import prompt, same_weights, weights

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

SHORT, LONG = "a photo of a sks robot", "a photo of a sks robot " * 20


@pytest.fixture
def z(pack, toybox):
    """MODEL, CLIP and VAE."""
    return small_z(pack), *toybox[1:]


@pytest.fixture
def learn(host, z, training_set):
    return learner(host, z, training_set)


def denoiser_of(pack, model, clip, **options):
    return pack.module("dreammatcher.host.training.model").HostDenoiser(model, clip, (16, 16), **options)


def targets(pack, denoiser, **chosen):
    layers = pack.module("dreammatcher.training.details").Layers(**{"feed_forward": True, **chosen})
    return pack.module("dreammatcher.training.dreambooth").transformer_targets(denoiser.unet, layers)


def noisy_of(denoiser, rows: int = 2) -> torch.Tensor:
    channels = denoiser.model.model.latent_format.latent_channels
    return torch.randn(rows, channels, 8, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LEARNING)
def test_a_prediction_is_the_flow_of_the_hosts_own_sampling(pack, toybox, name):
    model = in_inference_mode(transformer(name))
    denoiser = denoiser_of(pack, model, toybox[1])
    (text, extra), = prompt_of(name, 1)
    conditioning = pack.module("dreammatcher.subject").Conditioning(text, extra.get("pooled_output"))
    noisy, steps = noisy_of(denoiser, 1), torch.tensor([len(denoiser.alpha_bars) // 3])
    said = denoiser.predict(noisy, steps, conditioning, {})
    sigma = model.model.model_sampling.sigmas[steps].clone()
    assert close(1 - denoiser.alpha_bars[steps].sqrt(), sigma, RUN)
    shown = pack.module("dreammatcher.host.model.arguments").with_frames(model.model, noisy)
    given = model.model.extra_conds(cross_attn=text, noise=shown, device="cpu", guidance=1.0, **extra)
    if name == "Chroma":  # it is told none
        given = model.model.extra_conds(cross_attn=text, noise=shown, device="cpu", **extra)
    named = {key: one.process_cond(batch_size=1, area=None).cond for key, one in given.items()}
    clean = model.model.apply_model(shown, sigma, transformer_options={"cond_or_uncond": [0]}, **named).view_as(noisy)
    assert said.std() > 0.1 and close(noisy - sigma.view(1, 1, 1, 1) * said, clean, RUN)


@pytest.mark.parametrize("name", LEARNING)
def test_prompts_of_any_lengths_share_a_batch_as_if_each_were_alone(pack, toybox, name):
    denoiser = denoiser_of(pack, in_inference_mode(transformer(name)), toybox[1], prompts=[LONG])
    noisy, steps = noisy_of(denoiser, 3), torch.tensor([100, 500, 900])
    captions = [LONG, SHORT, LONG]
    together = denoiser.predict(noisy, steps, denoiser.encode(captions), {})
    for row, caption in enumerate(captions):
        alone = denoiser.predict(noisy[[row]], steps[[row]], denoiser.encode([caption]), {})
        assert close(together[[row]], alone, RUN)


@pytest.mark.parametrize("name", ["Z-Image", "Flux.1", "Qwen-Image"])
def test_gradients_of_the_layers_that_learn_equal_finite_differences_and_leave_nothing_behind(pack, toybox, name):
    import comfy.model_management

    model = in_inference_mode(transformer(name))
    before = weights(model)
    denoiser = denoiser_of(pack, model, toybox[1], prompts=[SHORT])
    learned = overrides(denoiser.unet, tuple(targets(pack, denoiser)[2:16:3]))
    noisy, text = noisy_of(denoiser, 1), denoiser.encode([SHORT])

    def loss():
        return denoiser.predict(noisy, torch.tensor([300]), text, learned).double().square().mean()

    with torch.inference_mode(False), torch.enable_grad():
        loss().backward()
    agree({key: finite_difference(loss, learned, key, 1e-2) for key in learned})
    assert same_weights(model, before) and not comfy.model_management.in_training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


@pytest.mark.parametrize("name", LEARNING)
def test_checkpointing_gives_the_same_gradients_of_every_layer_and_keeps_less(pack, toybox, name):
    gradients, kept = [], []
    for checkpointing in (False, True):
        denoiser = denoiser_of(pack, in_inference_mode(transformer(name)), toybox[1], checkpointing=checkpointing)
        learned = overrides(denoiser.unet, targets(pack, denoiser))
        text = denoiser.encode([SHORT])
        with torch.inference_mode(False), torch.enable_grad():
            with kept_for_the_gradient() as noted:
                loss = denoiser.predict(noisy_of(denoiser, 1), torch.tensor([300]), text, learned).square().mean()
            found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
        gradients.append([torch.zeros_like(value) if one is None else one for one, value in zip(found, learned.values())])
        kept.append(noted.beside(denoiser.unet.values(), learned.values()))
    assert all(close(again, plain, RUN) for plain, again in zip(*gradients))
    still = [key for key, one in zip(learned, gradients[0]) if not one.any()]
    last = len(denoiser.model.model.diffusion_model.transformer_blocks) - 1 if name == "Qwen-Image" else None
    assert all(f"blocks.{last}." in key and ("txt" in key or "add" in key) for key in still), "nobody reads the last text"
    assert kept[1] < 0.5 * kept[0], kept


@pytest.mark.parametrize(("name", "told"), [("SD3.5", "SD3"), ("HiDream", "HiDream")])
def test_a_network_that_is_matched_and_not_taught_is_refused_by_its_name(pack, toybox, name, told):
    with pytest.raises(ValueError, match=f"model: {told}.* is matched and not taught here; teach one of Z-Image, Lumina 2"):
        denoiser_of(pack, transformer(name), toybox[1])


@pytest.mark.parametrize("name", ["Cosmos-Predict2"])
def test_a_network_without_gradients_is_refused_by_its_name(pack, toybox, name):
    model = transformer(name)
    with pytest.raises(ValueError, match="model: no gradient passes through MiniTrainDIT .Anima and Cosmos-Predict2."):
        denoiser_of(pack, model, toybox[1])
    hooks, gradients = (pack.module(f"dreammatcher.host.model.{part}") for part in ("hooks", "gradients"))
    arguments, Conditioning = pack.module("dreammatcher.host.model.arguments"), pack.module("dreammatcher.subject").Conditioning
    base = model.model
    with torch.inference_mode(False), torch.enable_grad(), hooks.told_of_training():
        known = gradients.ordinary_weights(base.diffusion_model, torch.device("cpu"))
        key = "blocks.0.self_attn.q_proj.weight"
        learned = {key: known[key].clone().requires_grad_()}
        x = torch.randn(1, 16, 1, 8, 8)
        given = arguments.batch_arguments(base, Conditioning(prompt(1)[0][0].clone()), x)
        loss = hooks.with_overrides(base.diffusion_model, known, learned, lambda: arguments.network_call(
            base, x, torch.tensor([0.4]), given, {})).square().sum()
        with pytest.raises(RuntimeError, match="no autograd formula"):  # when it has one, the refusal may go
            loss.backward()


def test_dreambooth_learns_attention_and_feed_forward_into_a_file_that_load_lora_takes(host, learn, z, model_folder):
    before = weights(z[0])
    model, _, learned, _ = learn()
    layers = {name.split(".")[0] for name in learned.lora}
    assert len(layers) == 4 * 5 and "lora_unet_layers_1_attention_qkv" in layers
    assert "lora_unet_noise_refiner_0_feed_forward_w2" in layers
    folder = model_folder("loras")
    host.nodes["DreamMatcherSaveLearned"]().save(learned, "flow")
    stock, text = host.nodes["LoraLoader"]().load_lora(z[0], z[1], "flow.safetensors", 1.0, 1.0)
    positive, negative = prompt(1), prompt(2)
    pictures = [drawn(one, positive, negative, 16, 16) for one in (model, stock, z[0])]
    moved = (pictures[0] - pictures[2]).norm()
    assert moved > 0.01 * pictures[2].norm()
    assert (pictures[0] - pictures[1]).norm() < 0.02 * moved, "the file is in half precision"
    assert same_weights(z[0], before)
    with safe_open(folder / "flow.safetensors", "pt") as file:
        about = file.metadata()
    assert about["modelspec.architecture"] == "toyboxzfamily/lora" and "modelspec.prediction_type" not in about
    assert about["modelspec.trigger_phrase"] == "sks robot" and json.loads(about["ss_tag_frequency"])
    loaded = host.nodes["DreamMatcherLoadLearned"]().load(z[0], z[1], "flow.safetensors", 1.0, 1.0)["result"]
    assert close(drawn(loaded[0], positive, negative, 16, 16), pictures[1], RUN)


def test_the_loss_falls_and_samples_are_drawn_on_the_way(host, learn, caplog):
    folder = host.folder / "output" / "dreammatcher" / "runs" / "flow samples"
    shutil.rmtree(folder, ignore_errors=True)
    options = plain_options(host, sample_prompt="a sks robot on sand", sample_every=15, keep_every=15, run_name="flow samples")
    with caplog.at_level(logging.WARNING):
        learn(steps=30, rate=5e-3, options=options, batch=2)
    assert not [record.message for record in caplog.records if "cannot be kept" in record.message]
    run = json.loads((folder / "run.json").read_text())
    losses = run["losses"]
    assert sorted(run["steps"]) == ["15", "30"] and sum(losses[-10:]) < 0.9 * sum(losses[:10])


def details(host, **chosen):
    node = host.nodes["DreamMatcherTrainingDetails"]()
    given = {key: one[1]["default"] if "default" in one[1] else one[0][0] for key, one in node.INPUT_TYPES()["required"].items()}
    return node.make(**{**given, **chosen})[0]


def plain_options(host, **chosen):
    node = host.nodes["DreamMatcherTrainingOptions"]()
    given = {key: one[1]["default"] if "default" in one[1] else one[0][0] for key, one in node.INPUT_TYPES()["required"].items()}
    return node.make(**{**given, **chosen})[0]


def set_of(host, pictures, captions: str = "", masks=None):
    return host.nodes["DreamMatcherTrainingSet"]().make("sks", "robot", "photo", 128, pictures, masks, captions)["result"][0]


#: what is chosen of Training Details; with that node feed-forward is a choice
CHOICES = {"feed_forward": {"feed_forward": False}, "attention": {"attention": False}, "timesteps": {"timesteps": "logit-normal"},
           "loss": {"loss": "Huber"}, "offset": {"noise_offset": 0.1}, "dropout": {"rank_dropout": 0.5}}


@pytest.mark.parametrize("change", [*CHOICES, "shuffle", "prior", "text_encoder", "masked", "min_snr"])
def test_every_choice_changes_what_is_learned(host, learn, z, pictures, change):
    tags, masks = "\n".join(["sks robot, grass, sun, hills"] * len(pictures)), torch.zeros(len(pictures), *pictures.shape[1:3])
    masks[:, 32:96, 32:96] = 1
    tagged, given = {"training_set": set_of(host, pictures, tags)}, {}
    if change in CHOICES:
        given = dict(options=details(host, **{"feed_forward": True, **CHOICES[change]}))
    elif change == "shuffle":
        given = dict(options=details(host, feed_forward=True, caption_shuffle=True), **tagged)
    elif change == "prior":
        drawn_ones = host.nodes["DreamMatcherPriorSet"]().make(*z, set_of(host, pictures), 1, 2, 3.0, "euler", "simple", 1)
        given = dict(prior_set=drawn_ones["result"][0])
    elif change == "masked":
        given = dict(masked=True, training_set=set_of(host, pictures, masks=masks))
    else:
        given = {"text_encoder": dict(text_encoder=True), "min_snr": dict(options=plain_options(host, min_snr_gamma=1.0))}[change]
    plain, other = (learn(**chosen)[2].lora for chosen in (tagged if change == "shuffle" else {}, given))
    assert plain.keys() != other.keys() or any(not torch.equal(plain[key], other[key]) for key in plain)
    if change in ("feed_forward", "attention"):
        assert other and all(("feed_forward" in key) == (change == "attention") for key in other)
    if change == "text_encoder":
        assert any(key.startswith("lora_te_") for key in other)
