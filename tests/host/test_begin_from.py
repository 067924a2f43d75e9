"""A training begins from a LoRA or an embedding that exists: this pack's or another program's, under any name the host knows."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from test_lora_files import changed
from test_two_text_encoders import two_encoders
from world import family_unet

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

USUAL = dict(optimiser="AdamW", schedule="constant", warmup=0, weight_decay=0.01, clip_norm=1.0, accumulate=1, average=0.0,
             min_snr_gamma=0.0, lora_alpha=0.0, sample_prompt="", sample_every=0, when_stopped="go on when queued again")
STILL = 1e-12  # a rate at which a step changes nothing that float32 could hold
#: a layer that no LoRA of this pack has, one that each has, a convolution, and one of the text encoder, by other programs' names
FEED_FORWARD = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2"
ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
PROJECTION = "lora_unet_down_blocks_0_attentions_0_proj_in"


@pytest.fixture(autouse=True)
def no_estimate(pack, monkeypatch):
    """Memory, most of so short a training, has tests of its own."""
    monkeypatch.setattr(pack.module("dreammatcher.host.training.run"), "check_memory", lambda recipe, chosen, *_, **__: chosen)


@pytest.fixture
def folder(model_folder):
    return model_folder("loras")


@pytest.fixture
def dreambooth(host, fresh, small_set):
    def learn(steps=2, rate=1e-3, seed=1, kind="LoRA", options=None, **more):
        chosen, = host.nodes["DreamMatcherTrainingOptions"]().make(**{**USUAL, **(options or {})})
        return host.nodes["DreamMatcherDreamBooth"]().learn(*fresh, small_set, kind, steps, rate, seed, options=chosen, **more)[2]
    return learn


def saved(host, learned, name):
    return host.nodes["DreamMatcherSaveLearned"]().save(learned, name)["result"][0]


def loaded(host, fresh, name):
    return host.nodes["DreamMatcherLoadLearned"]().load(*fresh[:2], name, 1.0, 1.0)["result"][2]


def effect(host, fresh, learned, folder, name):
    """What a LoRA changes of each weight, by the host's own code."""
    save_file({key: value.contiguous() for key, value in learned.lora.items()}, folder / f"{name}.safetensors")
    return changed(host, f"{name}.safetensors", *fresh[:2])


def same(one, other, share=1e-4):
    return one.keys() == other.keys() and all(
        (value - other[key]).norm() <= share * (value.norm() + 1e-6) for key, value in one.items())


def shaped(fresh, form, rank, seed, scale=0.1):
    """Factors for a weight by its name in files, of the model's own shape."""
    import comfy.lora

    model, clip, _ = fresh
    names = {**comfy.lora.model_lora_keys_unet(model.model, {}), **comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})}
    weight = {**model.model.state_dict(), **clip.cond_stage_model.state_dict()}[names[form]]
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rank, *weight.shape[1:], generator=generator),
            scale * torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator))


def kohya(fresh, forms, rank=2, alpha=1.0):
    tensors = {}
    for number, form in enumerate(forms):
        down, up = shaped(fresh, form, rank, number)
        tensors |= {f"{form}.lora_down.weight": down, f"{form}.lora_up.weight": up, f"{form}.alpha": torch.tensor(alpha)}
    return tensors


@pytest.mark.parametrize(("rank", "options"), [(4, {}), (6, {}), (6, {"lora_alpha": 2.0})])
def test_a_lora_goes_on_with_the_same_effect_at_its_rank_and_at_a_higher_one(host, fresh, dreambooth, folder, rank, options):
    first = dreambooth(rank=4, steps=3)
    again = dreambooth(rank=rank, steps=1, rate=STILL, begin_from=first, options=options)
    assert same(effect(host, fresh, first, folder, "first"), effect(host, fresh, again, folder, "begun_again"))
    further = dreambooth(rank=rank, steps=1, begin_from=first, options=options)
    assert not same(effect(host, fresh, first, folder, "first"), effect(host, fresh, further, folder, "further"))


def test_the_loss_begins_where_the_lora_left_it(host, pack, fresh, small_set):
    """The first loss of a run that begins from a LoRA is that of the run's next step, and not that of the plain model."""
    learn, settings = (pack.module(f"dreammatcher.{name}") for name in ("host.training.learn", "training.settings"))

    def trained(steps, begin_from=None, seed=5):
        return learn.dreambooth(*fresh, small_set, None, learn.DreamBoothSettings(rate=1e-2), settings.ObjectiveSettings(),
                                settings.TrainingSettings(steps=steps, batch=2, seed=seed), begin_from=begin_from)

    learned, losses = trained(40)
    plain, begun = (trained(1, start, seed=6)[1][0] for start in (None, learned))
    assert begun < 0.9 * plain
    clipped = learn.dreambooth(*fresh, small_set, None, learn.DreamBoothSettings(rate=STILL), settings.ObjectiveSettings(),
                               settings.TrainingSettings(steps=1, batch=2, seed=6), begin_from=learned)
    assert clipped[1][0] == pytest.approx(begun, rel=1e-6) and len(losses) == 40


def test_another_program_s_lora_goes_on_with_its_layers_and_its_alpha(host, fresh, dreambooth, folder):
    forms = [ATTENTION, FEED_FORWARD, PROJECTION, TEXT]
    save_file(kohya(fresh, forms, alpha=0.5), folder / "theirs.safetensors")
    theirs = loaded(host, fresh, "theirs.safetensors")
    wanted = changed(host, "theirs.safetensors", *fresh[:2])
    assert len(wanted) == 4
    begun = effect(host, fresh, dreambooth(steps=1, rate=STILL, text_encoder=True, begin_from=theirs), folder, "begun")
    assert wanted.keys() < begun.keys()
    assert same(wanted, {key: begun[key] for key in wanted})
    assert all(value.abs().max() < 1e-9 for key, value in begun.items() if key not in wanted)
    further = effect(host, fresh, dreambooth(steps=2, text_encoder=True, begin_from=theirs), folder, "further")
    assert all(not torch.equal(further[key], begun[key]) for key in wanted), "layers beyond the usual ones learn too"


def test_a_lora_by_diffusers_names_goes_on(host, fresh, dreambooth, folder):
    down, up = shaped(fresh, ATTENTION, 2, 1)
    form = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q"
    save_file({f"{form}_lora.down.weight": down, f"{form}_lora.up.weight": up}, folder / "scripts.safetensors")
    begun = effect(host, fresh, dreambooth(steps=1, rate=STILL, begin_from=loaded(host, fresh, "scripts.safetensors")), folder,
                   "begun")
    wanted = changed(host, "scripts.safetensors", *fresh[:2])
    assert same(wanted, {key: begun[key] for key in wanted}) and wanted


def test_a_full_training_goes_on_from_a_full_one_and_from_a_lora(host, fresh, dreambooth, folder):
    for name, first in (("full", dreambooth(kind="full")), ("low", dreambooth())):
        begun = effect(host, fresh, dreambooth(kind="full", steps=1, rate=STILL, begin_from=first), folder, f"{name}2")
        wanted = effect(host, fresh, first, folder, name)
        assert wanted.keys() <= begun.keys() and same(wanted, {key: begun[key] for key in wanted})


def test_a_word_and_custom_diffusion_go_on(host, fresh, small_set):
    def word(steps, rate, **more):
        return host.nodes["DreamMatcherTextualInversion"]().learn(*fresh, small_set, "robot", 2, steps, rate, 1, **more)[2]

    first = word(2, 1e-2)
    assert torch.equal(word(1, STILL, begin_from=first).embeddings["sks"], first.embeddings["sks"])

    def both(steps, rate, **more):
        return host.nodes["DreamMatcherCustomDiffusion"]().learn(*fresh, small_set, "robot", steps, rate, 1, sizes=False, batch=1,
                                                                 **more)[2]

    learned = both(2, 1e-3)
    again = both(1, STILL, begin_from=learned)
    assert torch.allclose(again.embeddings["sks"], learned.embeddings["sks"], rtol=1e-5)
    assert same(learned.lora, again.lora)
    renamed = type(learned)({}, {"another": first.embeddings["sks"]})
    assert torch.equal(word(1, STILL, begin_from=renamed).embeddings["sks"], first.embeddings["sks"]), "the only word is meant"


def test_both_text_encoders_of_sdxl_go_on(host, fresh, folder, small_set, tmp_path):
    model, clip = family_unet("SDXL", context=1320), two_encoders(tmp_path)
    train = host.nodes["DreamMatcherDreamBooth"]().learn
    first = train(model, clip, fresh[2], small_set, "LoRA", 2, 1e-3, 1, text_encoder=True)[2]
    assert any("lora_te1_" in name for name in first.lora) and any("lora_te2_" in name for name in first.lora)
    again = train(model, clip, fresh[2], small_set, "LoRA", 1, STILL, 1, text_encoder=True, begin_from=first)[2]
    assert same(first.lora, again.lora)


def test_what_a_training_cannot_begin_from_is_refused_by_its_input(host, pack, fresh, dreambooth, small_set, folder):
    learned = pack.module("dreammatcher.training.export").Learned
    with pytest.raises(ValueError, match="begin_from: its rank is 8 and the node's 4; set rank to 8 or more"):
        dreambooth(begin_from=learned(kohya(fresh, [ATTENTION], rank=8)))
    with pytest.raises(ValueError, match=r"begin_from: it holds weights of the text encoder.*turn the node's text_encoder on"):
        dreambooth(begin_from=learned(kohya(fresh, [ATTENTION, TEXT])))
    down, up = shaped(fresh, ATTENTION, 2, 1)
    with pytest.raises(ValueError, match="begin_from: it is a LoRA for another kind of model"):
        dreambooth(begin_from=learned({f"{ATTENTION}.lora_down.weight": down[:, :-1], f"{ATTENTION}.lora_up.weight": up}))
    with pytest.raises(ValueError, match=r"begin_from: .* is changed by a LoHa"):
        dreambooth(begin_from=learned({f"{ATTENTION}.hada_w{number}_{part}": value.clone() for number in (1, 2)
                                       for part, value in (("a", up), ("b", down))}))
    with pytest.raises(ValueError, match=r"begin_from: .* is changed by a DoRA"):
        dreambooth(begin_from=learned({**kohya(fresh, [ATTENTION]), f"{ATTENTION}.dora_scale": torch.ones(len(up), 1)}))
    with pytest.raises(ValueError, match=r"begin_from: .* has a whole difference there.*set kind to full"):
        dreambooth(begin_from=learned({f"{ATTENTION}.diff": up.flatten(1) @ down.flatten(1)}))
    words = host.nodes["DreamMatcherTextualInversion"]().learn
    with pytest.raises(ValueError, match="begin_from: it holds weights of the UNet, which this node does not teach"):
        words(*fresh, small_set, "robot", 1, 1, 1e-2, 1, begin_from=learned(kohya(fresh, [ATTENTION])))
    with pytest.raises(ValueError, match="begin_from: its word has 3 vectors and 1 are learned here; set vectors to 3"):
        words(*fresh, small_set, "robot", 1, 1, 1e-2, 1, begin_from=learned({}, {"sks": torch.zeros(3, 96)}))
    with pytest.raises(ValueError, match="begin_from: its vectors have 768 numbers and this model's words 96"):
        words(*fresh, small_set, "robot", 1, 1, 1e-2, 1, begin_from=learned({}, {"sks": torch.zeros(1, 768)}))
    with pytest.raises(ValueError, match="begin_from: its words are 'a', 'b' and not 'sks'"):
        words(*fresh, small_set, "robot", 1, 1, 1e-2, 1, begin_from=learned({}, dict.fromkeys("ab", torch.zeros(1, 96))))
    with pytest.raises(ValueError, match=r"begin_from: it changes 1 weights that are not taught here.*attn1.to_q"):
        host.nodes["DreamMatcherCustomDiffusion"]().learn(*fresh, small_set, "robot", 1, 1e-3, 1, sizes=False,
                                                          begin_from=learned(kohya(fresh, [ATTENTION])))
