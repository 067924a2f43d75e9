"""Words of models with two text encoders (SDXL, Illustrious, NoobAI, Pony): learned, applied, saved for the stock loader, and
read by stages. The encoders are small and random, through the host's own classes, with Toybox's vocabulary."""

from __future__ import annotations

import json

import pytest
import torch
from closeness import RUN, close
from safetensors.torch import load_file, save_file
from world import family_unet, same_weights, weights

from harness.library import ROOT
from toybox.vocab import TOKENIZER_DIR

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

WIDTHS = {"l": 40, "g": 1280}  # SDXL's pooled prompt is 1280 wide
WORD = "<me>"


def two_encoders(folder):
    """CLIP with the layout of SDXL's, reading embeddings from ``folder``."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    from toybox.host import text_config

    vocabulary = len(json.loads((TOKENIZER_DIR / "vocab.json").read_text(encoding="utf-8")))
    special = {"start": vocabulary - 2, "end": vocabulary - 1, "pad": vocabulary - 1}

    def tower(name, device, dtype):
        width = WIDTHS[name]
        config = {**text_config(vocabulary), "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 3}
        encoder = comfy.sd1_clip.SDClipModel(device=device, dtype=dtype, special_tokens=special, textmodel_json_config=config,
                                             layer="hidden", layer_idx=-2, layer_norm_hidden_state=False)
        known = encoder.transformer.get_input_embeddings()
        if known.num_embeddings != vocabulary:  # newer hosts take CLIP's vocabulary for granted
            encoder.transformer.set_input_embeddings(type(known)(vocabulary, width, device=known.weight.device,
                                                                 dtype=known.weight.dtype))
        return encoder

    class Tokenizer:
        def __init__(self, embedding_directory=None, **_):
            self.parts = {name: comfy.sd1_clip.SDTokenizer(
                str(TOKENIZER_DIR), embedding_directory=embedding_directory, embedding_size=WIDTHS[name],
                embedding_key=f"clip_{name}") for name in ("g", "l")}

        def tokenize_with_weights(self, text, return_word_ids=False, **_):
            return {name: part.tokenize_with_weights(text, return_word_ids) for name, part in self.parts.items()}

        def clone(self):
            return self

    class Model(torch.nn.Module):
        def __init__(self, device="cpu", dtype=None, **_):
            super().__init__()
            self.clip_l, self.clip_g = tower("l", device, dtype), tower("g", device, dtype)
            self.dtypes = {dtype}

        def set_clip_options(self, options):
            self.clip_l.set_clip_options(options)
            self.clip_g.set_clip_options(options)

        def reset_clip_options(self):
            self.clip_l.reset_clip_options()
            self.clip_g.reset_clip_options()

        def encode_token_weights(self, tokens):
            (g, pooled, *_), (l, *_) = (getattr(self, f"clip_{name}").encode_token_weights(tokens[name]) for name in ("g", "l"))
            return torch.cat([l, g], -1), pooled

    with torch.inference_mode(False), torch.no_grad():
        clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(Tokenizer, Model), embedding_directory=[str(folder)])
        generator = torch.Generator().manual_seed(0)
        for name, value in clip.cond_stage_model.named_parameters():
            if value.ndim > 1:
                scale = 0.5 if "embed" in name else 0.5 * value.shape[-1] ** -0.5
                value.copy_(scale * torch.randn(value.shape, generator=generator))
            else:
                value.fill_(float(name.endswith("weight")))
        return clip


@pytest.fixture(scope="module")
def world(tmp_path_factory, toybox):
    """MODEL, CLIP and VAE, and the folder of embeddings."""
    folder = tmp_path_factory.mktemp("embeddings")
    return family_unet("SDXL", context=sum(WIDTHS.values())), two_encoders(folder), toybox[2], folder


@pytest.fixture(scope="module")
def training_set(host):
    draw = host.nodes["ToyboxReference"]().draw
    pictures = torch.cat([draw(3, "robot", pose, "grass")[0] for pose in (1, 2)])
    return host.nodes["DreamMatcherTrainingSet"]().make(WORD, "robot", "photo", 128, pictures)["result"][0]


@pytest.fixture(scope="module")
def learned(host, world, training_set):
    with torch.inference_mode():
        return host.nodes["DreamMatcherTextualInversion"]().learn(*world[:3], training_set, "robot", 2, 2, 0.01, 0)


def reads(host, clip, text: str):
    (cond, options), = host.nodes["CLIPTextEncode"]().encode(clip, text)[0]
    return cond, options["pooled_output"]


def test_a_word_learns_vectors_for_both_and_nothing_else_changes(host, world, training_set, learned):
    _, clip, result, _ = learned
    rows = result.embeddings[WORD]
    assert rows.shape == (2, sum(WIDTHS.values())) and result.about["towers"] == "clip_l:40,clip_g:1280"
    start = torch.cat([getattr(world[1].cond_stage_model, f"clip_{name}").transformer.get_input_embeddings().weight[
        world[1].tokenize("robot")[name][0][1][0]] for name in ("l", "g")])
    parts = (rows - start).split([40, 1280], 1)
    assert all((part.abs().amax(1) > 1e-4).all() for part in parts), "both vectors moved in both encoders"
    before = weights(world[0]), {name: value.clone() for name, value in world[1].cond_stage_model.state_dict().items()}
    host.nodes["DreamMatcherTextualInversion"]().learn(*world[:3], training_set, "robot", 1, 1, 0.01, 3)
    assert same_weights(world[0], before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in world[1].cond_stage_model.state_dict().items())
    known, plain = reads(host, clip, f"a {WORD} on grass"), reads(host, clip, "a robot on grass")
    assert not torch.allclose(known[0][..., :40], plain[0][..., :40]) and not torch.allclose(known[1], plain[1])
    assert torch.equal(plain[0], reads(host, world[1], "a robot on grass")[0]), "other words are read as before"


def test_it_is_saved_as_the_stock_loader_reads_it_and_loaded_again(host, pack, world, learned, model_folder):
    folder = model_folder("embeddings")
    said = host.nodes["DreamMatcherSaveLearned"]().save(learned[2], "two towers")
    path = next(folder.glob("two_towers*.safetensors"), None) or next((ROOT / "build").rglob("two_towers*.safetensors"))
    tensors = load_file(path)
    assert said and {name: tuple(value.shape) for name, value in tensors.items()} == {"clip_l": (2, 40), "clip_g": (2, 1280)}
    save_file(tensors, world[3] / "two_towers.safetensors")
    stock, learned_text = reads(host, world[1], "a embedding:two_towers on grass"), reads(host, learned[1], f"a {WORD} on grass")
    assert all(close(one, other, RUN) for one, other in zip(stock, learned_text))
    save_file(tensors, folder / "again.safetensors")
    result = pack.module("dreammatcher.host.training.load").load_learned(world[0], world[1], "again.safetensors")
    assert torch.equal(result.embeddings["<again>"], learned[2].embeddings[WORD])
    _, clip = pack.module("dreammatcher.host.training.keep").apply_learned(world[0], world[1], result)
    assert close(reads(host, clip, "a <again> on grass")[0], learned_text[0], RUN)
    path.unlink()


def test_custom_diffusion_and_dreambooth_learn_there_too(host, world, training_set):
    _, _, result, _ = host.nodes["DreamMatcherCustomDiffusion"]().learn(*world[:3], training_set, "robot", 1, 1e-3, 0,
                                                                        sizes=False)
    assert result.embeddings[WORD].shape == (1, 1320) and result.lora
    _, clip, result, _ = host.nodes["DreamMatcherDreamBooth"]().learn(*world[:3], training_set, "LoRA", 1, 1e-3, 0,
                                                                      text_encoder=True)
    assert any(name.startswith("lora_te2_") for name in result.lora)


def test_sefi_learns_and_draws_with_both(host, world):
    image = host.nodes["ToyboxReference"]().draw(3, "robot", 1, "grass")[0]
    sefi = host.nodes["DreamMatcherSeFiTrain"]().learn(
        *world[:3], image, WORD, "robot", "a photo of a robot", 128, 2, 0.05, 1.0, 4, learns="table", flip=False, batch=4)[0]
    assert sefi.keys.shape == (5, 1320) and not torch.allclose(sefi.keys, sefi.values)
    positive, _ = host.nodes["DreamMatcherSeFiPrompt"]().encode(world[1], f"a photo of a {WORD} on grass", sefi)
    model, = host.nodes["DreamMatcherSeFiApply"]().apply(world[0], sefi)
    negative = host.nodes["CLIPTextEncode"]().encode(world[1], "")[0]
    draw = host.nodes["KSampler"]().sample
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    staged, plain = (draw(each, 1, 3, 4.0, "euler", "normal", positive, negative, latent)[0]["samples"]
                     for each in (model, world[0]))
    assert torch.isfinite(staged).all() and not torch.allclose(staged, plain)


def test_vico_and_words_of_another_model_are_refused_with_what_to_do(host, pack, world, training_set):
    with pytest.raises(ValueError, match="several text encoders.*ViCo is for SD1.x"):
        host.nodes["DreamMatcherViCoTrain"]().learn(*world[:3], training_set, "robot", 1, 5e-3, 1e-5, 0)
    apply = pack.module("dreammatcher.host.training.keep").apply_learned
    learned = pack.module("dreammatcher.training.export").Learned
    with pytest.raises(ValueError, match="vectors of 768 numbers and this model's words have 1320"):
        apply(world[0], world[1], learned({}, {"<cat>": torch.ones(1, 768)}))


def test_words_that_travel_in_a_lora_are_read_for_both(host, world, model_folder):
    model, clip, *_ = world
    parts = {name: torch.randn(2, width) for name, width in WIDTHS.items()}
    save_file({f"bundle_emb.me.clip_{name}": value for name, value in parts.items()}, model_folder("loras") / "two.safetensors")
    _, spoken, learned, words = host.nodes["DreamMatcherLoadLearned"]().load(model, clip, "two.safetensors", 1.0, 1.0)["result"]
    assert words == "me" and learned.about["towers"] == "clip_l:40,clip_g:1280"
    for name, value in parts.items():
        vectors = [token for token, *_ in spoken.tokenize("a photo of me")[name][0] if torch.is_tensor(token)]
        assert torch.equal(torch.stack(vectors), value)
