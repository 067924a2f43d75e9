"""The training nodes on diffusion transformers: other text encoders, what learns beside CLIP alone, memory, and refusals."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from closeness import RUN, close
from flow_world import LEARNING, learner, small_z
from kept_memory import kept_for_the_gradient
from test_guidance import in_inference_mode
from test_other_encoders import small_qwen
from transformers_world import drawn, transformer
from world import prompt, same_weights, weights

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture
def z(pack, toybox):
    """MODEL, CLIP and VAE."""
    return small_z(pack), *toybox[1:]


@pytest.fixture
def learn(host, z, training_set):
    return learner(host, z, training_set)


def spoken(caplog) -> str:
    return "\n".join(record.message for record in caplog.records)


@pytest.fixture
def qwen(host, pack, z):
    """A text encoder that is a language model, and a transformer as wide as it."""
    from world import randomised

    clip, module = small_qwen(host), pack.module("toybox.transformer")
    family = module.ToyboxZFamily({**module.CONFIG, "n_layers": 2, "cap_feat_dim": 32})
    return in_inference_mode(randomised(family)), clip


def test_captions_are_read_by_any_text_encoder_once_and_it_is_not_kept_beside_the_network(pack, learn, qwen, make_set, host,
                                                                                        monkeypatch):
    model, clip = qwen
    captions = "a sks robot on grass\na photo of a very small sks robot that stands on hot white sand"
    read, real = [], type(clip).encode_from_tokens
    monkeypatch.setattr(type(clip), "encode_from_tokens", lambda self, *given, **named: read.append(1) or real(
        self, *given, **named))
    before = {name: value.clone() for name, value in clip.cond_stage_model.state_dict().items()}
    patched, text, learned, _ = learn(model=model, clip=clip, training_set=make_set(captions=captions), steps=3, batch=2)
    assert len(read) == 3, "two captions, and the empty one for samples"
    assert learned.lora and not any(name.startswith("lora_te") for name in learned.lora)
    assert all(torch.equal(before[name], value) for name, value in text.cond_stage_model.state_dict().items())
    positive = text.encode_from_tokens_scheduled(text.tokenize("a sks robot"))
    assert not close(drawn(patched, positive, positive, 16, 16), drawn(model, positive, positive, 16, 16), RUN)


def test_a_quantised_text_encoder_reads_captions_all_the_same(learn, qwen):
    model, clip = qwen
    inner = clip.cond_stage_model.qwen25_7b.transformer.model.layers[0].mlp.up_proj
    inner.weight = torch.nn.Parameter(inner.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert learn(model=model, clip=clip)[2].lora


def test_only_clips_text_encoders_learn_beside_a_transformer(learn, qwen):
    model, clip = qwen
    with pytest.raises(ValueError, match="^text_encoder: this model reads text with qwen25_7b, and only CLIP's .* turn it off$"):
        learn(model=model, clip=clip, text_encoder=True)
    with pytest.raises(ValueError, match="^clip: this model reads text with qwen25_7b; words are learned"):
        learn("DreamMatcherTextualInversion", model=model, clip=clip, initial_word="robot", vectors=1)


def test_a_word_is_learned_beside_a_transformer_that_reads_by_clip(learn, z):
    before = weights(z[0])
    model, clip, learned, _ = learn("DreamMatcherTextualInversion", initial_word="robot", vectors=2, steps=2, rate=0.05)
    first = z[1].cond_stage_model.clip_l.transformer.get_input_embeddings().weight[z[1].tokenize("robot")["l"][0][1][0]]
    rows = learned.embeddings["sks"]
    assert rows.shape == (2, 96) and not close(rows, first.float().expand(2, -1), RUN) and not learned.lora
    assert same_weights(z[0], before) and learned.about["towers"] == "clip_l:96"
    with_word, without = (clip.encode_from_tokens_scheduled(one.tokenize("a photo of a sks")) for one in (clip, z[1]))
    assert not close(drawn(model, with_word, prompt(2), 16, 16), drawn(model, without, prompt(2), 16, 16), RUN)


def test_methods_of_a_unets_attention_refuse_a_transformer_in_one_sentence(host, learn, z, pictures):
    fix = "teaches a UNet's attention to the prompt, and NextDiT is a transformer; use DreamBooth .DreamMatcher. with kind LoRA"
    with pytest.raises(ValueError, match=f"^model: Custom Diffusion {fix}"):
        learn("DreamMatcherCustomDiffusion", initial_word="robot")
    with pytest.raises(ValueError, match=f"^model: ViCo {fix}"):
        host.nodes["DreamMatcherViCoTrain"]().learn(*z, host.nodes["DreamMatcherTrainingSet"]().make(
            "sks", "robot", "photo", 128, pictures)["result"][0], "robot", 1, 1e-3, 1e-3, 0)
    with pytest.raises(ValueError, match=f"^model: SeFi-IDE {fix}"):
        host.nodes["DreamMatcherSeFiTrain"]().learn(*z, pictures[:1], "<me>", "robot", "a photo of a robot", 128, 1, 1e-3, 0.1, 0)
    loss = host.nodes["DreamMatcherSeFiLoss"]().make("robot", 0.1, "mean", "all tokens")[0]
    with pytest.raises(ValueError, match="^attention_loss: it compares a UNet's attention .* take this input away$"):
        learn("DreamMatcherTextualInversion", initial_word="robot", vectors=1, attention_loss=loss)


def test_layers_of_a_unet_are_refused_by_their_names(host, learn):
    node = host.nodes["DreamMatcherTrainingDetails"]()
    given = {key: one[1]["default"] if "default" in one[1] else one[0][0] for key, one in node.INPUT_TYPES()["required"].items()}
    for chosen, said in (({"convolutions": True}, "convolutions"), ({"blocks": "IN04", "projections": True},
                                                                    "projections and blocks")):
        with pytest.raises(ValueError, match=f"^{said}: these are layers of a UNet"):
            learn(options=node.make(**{**given, **chosen})[0])
    with pytest.raises(ValueError, match="^attention, feed_forward, convolutions and projections: all are off"):
        learn(options=node.make(**{**given, "attention": False})[0])


def test_a_sampling_that_is_no_flow_is_refused(host, learn, z):
    patched, = host.nodes["ModelSamplingDiscrete"]().patch(z[0], "v_prediction", False)
    with pytest.raises(ValueError, match="^model: NextDiT is taught by its flow, and this model's sampling is another"):
        learn(model=patched)


def test_another_shift_of_the_sampling_is_learned_at(host, pack, z):
    shifted = host.nodes["ModelSamplingAuraFlow"]().patch_aura(z[0], 3.0)[0]
    schedule = pack.module("dreammatcher.host.training.schedule").schedule_of
    plain, other = (1 - schedule(model).alpha_bars.sqrt() for model in (z[0], shifted))
    assert close(other, 3 * plain / (1 + 2 * plain), RUN)


def test_a_full_training_and_one_that_begins_from_a_lora_go_on_in_the_graph(host, learn, z, model_folder):
    import comfy.utils

    folder = model_folder("loras")
    for chosen in (dict(kind="full", rate=1e-3), dict()):
        model, _, learned, _ = learn(**chosen)
        host.nodes["DreamMatcherSaveLearned"]().save(learned, f"flow {chosen.get('kind', 'lora')}")
        file = comfy.utils.load_torch_file(str(sorted(folder.glob("flow*"), key=lambda path: path.stat().st_mtime)[-1]))
        stock = comfy.sd.load_lora_for_models(z[0], None, file, 1.0, 0.0)[0]
        ours, theirs, plain = (drawn(one, prompt(1), prompt(2), 16, 16) for one in (model, stock, z[0]))
        assert (ours - theirs).norm() < 0.02 * (ours - plain).norm()
    more = learn(begin_from=learned, seed=1)[2]
    assert any(not torch.equal(more.lora[name], value) for name, value in learned.lora.items())
    name = "lora_unet_layers_0_attention_out.lora_up.weight"
    assert (more.lora[name] - learned.lora[name]).norm() < 3 * learned.lora[name].norm(), "it began there"


@pytest.mark.parametrize("name", LEARNING)
def test_files_name_every_layer_that_learns_as_load_lora_knows_it(pack, host, name):
    import comfy.lora

    model = transformer(name)
    training, names = (pack.module(f"dreammatcher.{part}") for part in ("training.dreambooth", "host.training.names"))
    settings, layers = pack.module("dreammatcher.training.settings"), pack.module("dreammatcher.training.details").Layers
    known = model.model.diffusion_model.state_dict()
    targets = training.transformer_targets(known, layers(feed_forward=True))
    blocks = [key for key, value in known.items() if value.ndim == 2 and key.endswith(".weight") and any(
        part in key for part in ("attn", "attention", "mlp.", "feed_forward", "ffn", "linear1", "linear2"))
        and not any(part in key for part in ("mod.", "modulation", "norm", "tmlp", "txtmlp", "t_embedder"))]
    assert set(targets) == set(blocks), "all of attention and feed-forward, and nothing else"
    with torch.inference_mode(False):
        lora = training.lora_of(known, targets, settings.LoraSettings(2), 1e-4, torch.Generator().manual_seed(0))
        tensors = pack.module("dreammatcher.training.export").lora_tensors(lora, names.unet_names(model.model))
    taken = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    assert set(taken) == {f"diffusion_model.{key}" for key in targets}


@pytest.mark.parametrize("name", ["Z-Image", "Flux.1", "Qwen-Image"])
def test_the_estimate_of_memory_is_what_autograd_keeps(pack, toybox, name):
    denoiser_of = pack.module("dreammatcher.host.training.model").HostDenoiser
    estimate, training = (pack.module(f"dreammatcher.{part}") for part in ("host.training.estimate", "training.dreambooth"))
    settings, layers = pack.module("dreammatcher.training.settings"), pack.module("dreammatcher.training.details").Layers
    found = []
    for checkpointing in (False, True):
        model = denoiser_of(in_inference_mode(transformer(name)), toybox[1], (16, 16), checkpointing=checkpointing)
        targets = training.transformer_targets(model.unet, layers(feed_forward=True))
        with torch.inference_mode(False), torch.enable_grad():
            lora = training.lora_of(model.unet, targets, settings.LoraSettings(2), 1e-4, torch.Generator().manual_seed(0))
            low = lora.low_rank()
        estimated = estimate.activations(model, [], low, False, 2, (16, 16), False)
        found.append(estimated)
        if not checkpointing:
            with torch.inference_mode(False), torch.enable_grad():
                noisy = torch.randn(2, model.model.model.latent_format.latent_channels, 16, 16)
                with kept_for_the_gradient() as kept:
                    model.predict(noisy, torch.tensor([300, 300]), model.encode(["a robot"] * 2), low)
            assert estimated == pytest.approx(kept.beside(model.unet.values(), lora.parameters()), rel=0.15)
        assert estimate.work_of(model, 2, (16, 16)) > 0
    assert found[1] < 0.7 * found[0]


def test_a_training_that_does_not_fit_is_made_to_by_checkpointing_and_told(pack, learn, monkeypatch, caplog):
    estimate = pack.module("dreammatcher.host.training.estimate")
    real = estimate.need_of
    sizes = []

    def need_of(recipe, model, *rest):
        need = real(recipe, model, *rest)
        sizes.append((bool(model.checkpointing), need.total))
        monkeypatch.setattr(estimate, "free_on", lambda device: sizes[0][1] - 1)
        return need

    monkeypatch.setattr(estimate, "need_of", need_of)
    with caplog.at_level(logging.INFO):
        assert learn()[2].lora
    assert [kind for kind, _ in sizes] == [False, True] and sizes[1][1] < sizes[0][1]
    assert "gradient checkpointing" in spoken(caplog)


def test_learn_easy_teaches_the_transformer_alone(host, pack, z, pictures, monkeypatch):
    module = pack.module("dreammatcher.host.training.easy")
    monkeypatch.setitem(module.BUDGETS, "quick", module.TrainingBudget(2, 1))
    made = []
    real = module.prior_set
    monkeypatch.setattr(module, "prior_set", lambda *given: made.append(given[-1]) or real(*given))
    shutil.rmtree(host.folder / "output" / "dreammatcher" / "prior", ignore_errors=True)
    result = host.nodes["DreamMatcherLearn"]().learn(*z, pictures, "robot", "quick", 1e-3, 1)["result"]
    learned = next(one for one in result if hasattr(one, "lora"))
    assert learned.lora and not any(name.startswith("lora_te") for name in learned.lora)
    assert any("feed_forward" in name for name in learned.lora)
    assert (made[0].cfg, made[0].sampler, made[0].scheduler) == (4.0, "euler", "simple")
