"""LoRAs of other programs: all names that the host's own loader takes, words that travel with them, and what is left out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

WEIGHT = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
#: endings of the names of a LoRA's two factors: kohya's, diffusers' of 2023, peft's, and others
ENDINGS = ((".lora_up.weight", ".lora_down.weight"), ("_lora.up.weight", "_lora.down.weight"),
           (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"), (".lora_B.weight", ".lora_A.weight"),
           (".lora.up.weight", ".lora.down.weight"), (".lora_B.default.weight", ".lora_A.default.weight"), (".lora_B", ".lora_A"))


@pytest.fixture
def folder(model_folder):
    return model_folder("loras")


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 2, generator=generator), torch.randn(2, 64, generator=generator)


def read(host, model, clip, name):
    return host.nodes["DreamMatcherLoadLearned"]().load(model, clip, name, 1.0, 1.0)["result"]


def changed(host, name, model, clip, loader="DreamMatcherLoadLearned"):
    """The change that a file makes to each weight, as the host computes it for the model."""
    import comfy.lora

    if loader == "LoraLoader":
        patched, text = host.nodes[loader]().load_lora(model, clip, name, 1.0, 1.0)
    else:
        patched, text, *_ = read(host, model, clip, name)
    older = patched.calculate_weight if hasattr(patched, "calculate_weight") else None
    calculate = getattr(comfy.lora, "calculate_weight", older)
    differences = {}
    for patcher in (patched, text.patcher):
        weights = patcher.model.state_dict()
        differences |= {key: calculate(patches, weights[key].clone().float(), key) - weights[key]
                        for key, patches in patcher.patches.items()}
    return differences


def forms(model, key):
    """Every name that the host has for one weight."""
    import comfy.lora

    return [name for name, weight in comfy.lora.model_lora_keys_unet(model.model, {}).items() if weight == key]


def test_every_name_that_load_lora_takes_is_taken_and_changes_the_same(host, fresh, folder, factors):
    model, clip, _ = fresh
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q" in forms(model, WEIGHT)
    taken = 0
    for form in forms(model, WEIGHT):
        for endings in ENDINGS:
            save_file(dict(zip((form + ending for ending in endings), factors)), folder / "form.safetensors")
            wanted = changed(host, "form.safetensors", model, clip, "LoraLoader")
            if not wanted:  # this host's loader does not know it
                with pytest.raises(ValueError, match=r"file: form\.safetensors is a LoRA for another kind of model"):
                    read(host, model, clip, "form.safetensors")
                continue
            taken += 1
            differences = changed(host, "form.safetensors", model, clip)
            assert differences.keys() == wanted.keys() and torch.equal(differences[WEIGHT], wanted[WEIGHT]), form + endings[0]
            product = factors[0] @ factors[1]
            assert (differences[WEIGHT] - product).abs().max() <= 1e-4 * product.abs().max()
    assert taken >= 15


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_lora_of_the_scripts_of_2023_draws_as_with_load_lora(host, fresh, folder, factors, prefix):
    from test_load_learned import drawn

    model, clip, _ = fresh
    stem = f"{prefix}down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    save_file({f"{stem}.up.weight": factors[0], f"{stem}.down.weight": factors[1]}, folder / "script.safetensors")
    stock = host.nodes["LoraLoader"]().load_lora(model, clip, "script.safetensors", 1.0, 1.0)
    ours = read(host, model, clip, "script.safetensors")
    assert torch.equal(drawn(host, *stock, "a robot"), drawn(host, *ours[:2], "a robot"))
    assert not torch.equal(drawn(host, *ours[:2], "a robot"), drawn(host, model, clip, "a robot"))


def test_what_is_no_plain_lora_is_taken_too(host, fresh, folder):
    model, clip, _ = fresh
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    contents = {"hada": {f"{stem}.hada_w{number}_{part}": torch.randn(64, 64)[:, :2] if part == "a" else torch.randn(2, 64)
                         for number in (1, 2) for part in ("a", "b")},
                "lokr": {f"{stem}.lokr_w1": torch.randn(8, 8), f"{stem}.lokr_w2": torch.randn(8, 8)},
                "whole": {f"{stem}.diff": torch.randn(64, 64)}}
    for name, content in contents.items():
        save_file({key: value.contiguous() for key, value in content.items()}, folder / f"{name}.safetensors")
        wanted = changed(host, f"{name}.safetensors", model, clip, "LoraLoader")
        differences = changed(host, f"{name}.safetensors", model, clip)
        assert torch.equal(differences[WEIGHT], wanted[WEIGHT]) and wanted[WEIGHT].abs().max() > 0


def test_what_is_left_out_of_a_lora_is_said_once_with_its_reason(host, fresh, folder, factors, caplog):
    model, clip, _ = fresh
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_"
    content = {f"{stem}q.lora_up.weight": factors[0], f"{stem}q.lora_down.weight": factors[1],
               f"{stem}k.lora_up.weight": torch.randn(320, 2), f"{stem}k.lora_down.weight": torch.randn(2, 320),
               "lora_te3_encoder_block_0.lora_up.weight": torch.ones(4, 2), "lora_te3_encoder_block_0.lora_down.weight":
               torch.ones(2, 4)}
    save_file(content, folder / "partly.safetensors")
    patched, _, learned, _ = read(host, model, clip, "partly.safetensors")
    assert set(patched.patches) == {WEIGHT} and set(learned.lora) == {name for name in content if name.startswith(f"{stem}q")}
    said, = (record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    assert "partly.safetensors: 2 tensors are for no weight of this model, as lora_te3_encoder_block_0" in said
    assert "1 weights have another size" in said and "320x320 in the file and 64x64 in the model" in said


def test_a_lora_whose_weights_all_have_another_size_is_refused(host, fresh, folder):
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    save_file({f"{stem}.lora_up.weight": torch.ones(320, 2), f"{stem}.lora_down.weight": torch.ones(2, 320)},
              folder / "sd15.safetensors")
    with pytest.raises(ValueError, match=r"file: sd15\.safetensors is a LoRA for another kind of model: 1 weights have another "
                                         r"size, .*320x320 in the file and 64x64 in the model"):
        read(host, *fresh[:2], "sd15.safetensors")


@pytest.mark.parametrize("with_lora", [True, False])
def test_words_in_a_lora_are_known_to_the_clip(host, fresh, folder, factors, with_lora):
    model, clip, _ = fresh
    rows = torch.randn(3, 96, generator=torch.Generator().manual_seed(2))
    content = {"bundle_emb.my-cat.string_to_param.*": rows[:2], "bundle_emb.<v1.5>.emb_params": rows[2:]}
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    if with_lora:
        content |= {f"{stem}.lora_up.weight": factors[0], f"{stem}.lora_down.weight": factors[1]}
    save_file({name: value.contiguous() for name, value in content.items()}, folder / "bundle.safetensors")
    patched, spoken, learned, words = read(host, model, clip, "bundle.safetensors")
    assert set(words.split()) == {"my-cat", "<v1.5>"} and bool(patched.patches) == with_lora
    assert torch.equal(learned.embeddings["my-cat"], rows[:2])
    vectors = [token for token, *_ in spoken.tokenize("a photo of my-cat and <v1.5> on grass")["l"][0] if torch.is_tensor(token)]
    assert torch.equal(torch.stack(vectors), rows)
    assert not any(torch.is_tensor(token) for token, *_ in clip.tokenize("a photo of my-cat")["l"][0])


def test_bundled_words_are_saved_with_the_lora_and_each_is_named(host, pack, fresh, folder, factors, model_folder):
    model_folder("embeddings")
    rows, stem = torch.randn(2, 96), "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    save_file({"bundle_emb.one.string_to_param.*": rows[:1].contiguous(), "bundle_emb.two.clip_l": rows[1:].contiguous(),
               f"{stem}.lora_up.weight": factors[0], f"{stem}.lora_down.weight": factors[1]}, folder / "both.safetensors")
    learned = read(host, *fresh[:2], "both.safetensors")[2]
    _, said = pack.module("dreammatcher.host.training.keep").save_learned(learned, "both saved")
    assert said.count("embedding:both_saved") >= 2 and "'one'" in said and "'two'" in said


def test_a_bundle_that_is_no_embedding_is_refused_with_its_word(host, fresh, folder):
    save_file({"bundle_emb.cat.clip_l": torch.ones(1, 96), "bundle_emb.cat.t5": torch.ones(1, 4096)}, folder / "t5.safetensors")
    with pytest.raises(ValueError, match=r"file: t5\.safetensors cannot be read: it holds clip_l, t5"):
        read(host, *fresh[:2], "t5.safetensors")
