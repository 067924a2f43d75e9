"""Subjects that were learned elsewhere: every form of official Custom Diffusion files, LoRAs, embeddings, and what is neither."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from closeness import RUN, close
from safetensors.torch import save_file
from world import same_weights, weights

pytestmark = pytest.mark.usefixtures("as_in_a_graph")


@pytest.fixture
def folder(model_folder):
    return model_folder("loras")


@pytest.fixture
def learned(fresh):
    """New keys and values by the UNet's own names, as a training would leave them, and a word."""
    generator = torch.Generator().manual_seed(1)
    unet = fresh[0].model.diffusion_model.state_dict()
    changed = {name: value + 0.3 * value.std() * torch.randn(value.shape, generator=generator)
               for name, value in unet.items() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    return changed, torch.randn(1, 96, generator=generator)


def diffusers_names(model) -> dict[str, str]:
    import comfy.utils

    table = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {ours: theirs for theirs, ours in table.items()}


def form(kind: str, model, changed: dict, word: torch.Tensor) -> dict:
    names = diffusers_names(model)
    theirs = {names[name]: value for name, value in changed.items()}
    if kind == "original":
        weights = {f"model.diffusion_model.{name}": value for name, value in changed.items()}
        return {"state_dict": {**weights, "embed": word}}
    if kind == "diffusers":
        return {re.sub(r"\.(to_[kv])\.", r".processor.\1_custom_diffusion.", name): value for name, value in theirs.items()}
    if kind == "compressed":
        weights, parts = model.model.diffusion_model.state_dict(), {}
        for name, value in changed.items():
            u, s, v = torch.linalg.svd(value - weights[name], full_matrices=False)
            parts[names[name]] = {"u": u * s, "v": v}
        theirs = parts
    return {"unet": theirs, "modifier_token": {"<new1>": word[0]}}


def drawn(host, model, clip, text="a photo of a <new1> robot on grass") -> torch.Tensor:
    positive, negative = (host.nodes["CLIPTextEncode"]().encode(clip, prompt)[0] for prompt in (text, ""))
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    return host.nodes["KSampler"]().sample(model, 5, 4, 5.0, "euler", "normal", positive, negative, latent)[0]["samples"]


def load(host, model, clip, name, **changes):
    node = host.nodes["DreamMatcherLoadLearned"]()
    return node.load(**{**dict(model=model, clip=clip, file=name, strength_model=1.0, strength_clip=1.0), **changes})["result"]


@pytest.mark.parametrize("kind", ["plain", "compressed", "original", "diffusers"])
def test_every_form_of_custom_diffusion_gives_the_weights_that_were_learned(host, pack, fresh, folder, learned, kind):
    model, clip, _ = fresh
    changed, word = learned
    content, name = form(kind, model, changed, word), f"{kind}.{'safetensors' if kind == 'diffusers' else 'bin'}"
    save_file(content, folder / name) if kind == "diffusers" else torch.save(content, folder / name)
    before = weights(model)
    loaded, text, got, words = load(host, model, clip, name)
    assert words == ("" if kind == "diffusers" else "<new1>")
    taught = host.nodes["ToyboxLoader"]().load()[0]
    taught.model.diffusion_model.load_state_dict(changed, strict=False)
    spoken = text if words else pack.module("dreammatcher.host.text.new_words").with_new_words(clip, {"<new1>": word})
    wanted, ours, plain = (drawn(host, one, spoken) for one in (taught, loaded, model))
    assert (ours - wanted).norm() < 1e-3 * (wanted - plain).norm()
    assert same_weights(model, before)
    assert set(got.embeddings) == set(words.split())


def test_a_delta_is_the_difference_to_the_model_without_its_loras(host, pack, fresh, folder, learned):
    model, clip, _ = fresh
    changed, word = learned
    torch.save(form("plain", model, changed, word), folder / "base.bin")
    alone = load(host, model, clip, "base.bin")[2].lora
    lora = {name: torch.randn_like(value) for name, value in alone.items()}
    other = pack.module("dreammatcher.training.export").Learned(lora)
    stacked, text = host.nodes["DreamMatcherApplyLearned"]().apply(model, clip, other, 0.3, 0)
    drawn(host, stacked, text)  # its LoRA is in the weights now
    assert all(close(value, load(host, stacked, text, "base.bin")[2].lora[name], RUN)
               for name, value in alone.items())


def test_every_layer_of_cross_attention_is_read_with_its_bias(host, fresh, folder):
    model, clip, _ = fresh
    names, weights = diffusers_names(model), model.model.diffusion_model.state_dict()
    layers = [name for name in weights if ".attn2." in name]
    generator = torch.Generator().manual_seed(2)
    changed = {name: weights[name] + 0.1 * torch.randn(weights[name].shape, generator=generator) for name in layers}
    assert any(name.endswith("to_out.0.bias") for name in layers)
    torch.save({"unet": {names[name]: value for name, value in changed.items()}}, folder / "plain_all.bin")
    custom = {re.sub(r"\.attn2\.(to_\w+)", r".attn2.processor.\1_custom_diffusion", names[name]): value
              for name, value in changed.items()}
    save_file(custom, folder / "custom_all.safetensors")
    whole = host.nodes["ToyboxLoader"]().load()[0]
    whole.model.diffusion_model.load_state_dict(changed, strict=False)
    wanted, plain = (drawn(host, one, clip, "a robot") for one in (whole, model))
    for name in ("plain_all.bin", "custom_all.safetensors"):
        assert (drawn(host, load(host, model, clip, name)[0], clip, "a robot") - wanted).norm() < 1e-3 * (wanted - plain).norm()


def test_a_text_encoder_in_the_file_is_said_to_be_left_out(host, fresh, folder, learned, caplog):
    content = {**form("plain", fresh[0], *learned), "text_encoder": {"weight": torch.ones(1)}}
    torch.save(content, folder / "text.bin")
    load(host, *fresh[:2], "text.bin")
    assert "text.bin: its text encoder is left out" in caplog.text


def test_strength_scales_what_was_learned(host, fresh, folder, learned):
    model, clip, _ = fresh
    torch.save(form("plain", model, *learned), folder / "strength.bin")
    none, half, full = (drawn(host, load(host, model, clip, "strength.bin", strength_model=strength)[0], clip, "a robot")
                        for strength in (0.0, 0.5, 1.0))
    assert torch.equal(none, drawn(host, model, clip, "a robot"))
    assert 0 < (half - none).norm() < (full - none).norm()


def test_what_this_pack_saves_it_loads_again(host, fresh, folder, learned, model_folder):
    model, clip, _ = fresh
    torch.save(form("plain", model, *learned), folder / "again.bin")
    loaded, text, got, _ = load(host, model, clip, "again.bin")
    model_folder("embeddings")
    name, = host.nodes["DreamMatcherSaveLearned"]().save(got, "resaved")["result"]
    again = load(host, model, clip, name)[0]
    wanted, plain = drawn(host, loaded, text), drawn(host, model, text)
    assert (drawn(host, again, text) - wanted).norm() < 0.02 * (wanted - plain).norm(), "half precision must be all that differs"


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_embeddings_of_every_form_give_a_word(host, fresh, folder):
    model, clip, _ = fresh
    rows = torch.randn(2, 96)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "old"}, folder / "old.pt")
    save_file({"emb_params": rows}, folder / "我的猫.safetensors")
    for name, word in (("old.pt", "<old>"), ("我的猫.safetensors", "<我的猫>")):
        _, spoken, learned, words = load(host, model, clip, name)
        assert words == word and torch.equal(learned.embeddings[word], rows)
        tokens = [token for token, *_ in spoken.tokenize(f"a {word} robot")["l"][0]]
        assert sum(map(torch.is_tensor, tokens)) == 2


@pytest.mark.parametrize("content, said", [
    ({f"lora_unet_double_blocks_0_img_attn_qkv.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")},
     "is a LoRA for another kind of model"),
    ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(2, 1280)}, "1 and 2 vectors for SDXL's two text encoders"),
    ([torch.ones(1)], "holds list and no weights by name")])
def test_files_for_other_models_are_refused_with_what_they_are(host, fresh, folder, content, said):
    torch.save(content, folder / "foreign.pt")
    with pytest.raises(ValueError, match=rf"file: foreign\.pt .*{said}"):
        load(host, *fresh[:2], "foreign.pt")


@pytest.mark.parametrize("content, said", [
    ({"unet": {"down_blocks.9.attn2.to_k.weight": torch.ones(2, 2)}}, "this model has no such weight"),
    ({"unet": {}, "modifier_token": {"<new1>": [torch.ones(768), torch.ones(1280)]}}, "several text encoders"),
    ({"unet": {"a": {"w": torch.ones(2)}}}, "a compressed weight has a u and a v"),
    ({"encoder.weight": torch.ones(2, 2), "decoder.weight": torch.ones(2, 2)}, "no LoRA, embedding or Custom Diffusion"),
])
def test_files_of_something_else_are_refused_with_their_name(host, fresh, folder, content, said):
    torch.save(content, folder / "other.bin")
    with pytest.raises(ValueError, match=rf"file: other\.bin .*{said}"):
        load(host, *fresh[:2], "other.bin")


def test_weights_of_another_size_are_refused(host, fresh, folder, learned):
    model, clip, _ = fresh
    wide = {name: torch.ones(value.shape[0], 768) for name, value in learned[0].items()}
    torch.save(form("plain", model, wide, torch.ones(1, 768)), folder / "sd15.bin")
    with pytest.raises(ValueError, match="64x768 in the file and 64x96 in the model"):
        load(host, model, clip, "sd15.bin")


def test_code_in_a_file_is_never_run(host, fresh, folder, capsys):
    (folder / "evil.bin").write_bytes(pickle.dumps({"unet": Evil()}))
    with pytest.raises(ValueError, match=r"file: evil\.bin cannot be read .*never code"):
        load(host, *fresh[:2], "evil.bin")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"\x80\x02}q\x00."])
def test_damaged_files_are_refused(host, fresh, folder, content):
    (folder / "broken.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"file: broken\.bin"):
        load(host, *fresh[:2], "broken.bin")


def test_a_file_that_is_not_there_is_named(host, fresh):
    with pytest.raises(ValueError, match="'gone.bin' is in none of ComfyUI's folders"):
        load(host, *fresh[:2], "gone.bin")
