"""The shipped model in the host: its prompts, embeddings, LoRAs and pictures are the host's own business."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from closeness import RUN, close
from safetensors.torch import save_file

from harness.examples import full_control, node
from harness.library import ROOT

MODEL = ROOT / "toybox" / "model.safetensors"


def encode(host, clip, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return host.nodes["CLIPTextEncode"]().encode(clip, text)[0][0][0]


def test_the_file_is_small_enough_to_ship():
    assert MODEL.stat().st_size <= 30_000_000


def test_prompts_weights_and_unknown_words_are_encoded(host, toybox):
    plain = encode(host, toybox[1], "a photo of a robot")
    assert plain.shape == (1, 77, 96) and torch.isfinite(plain).all()
    assert not torch.equal(plain, encode(host, toybox[1], "a photo of a (robot:1.4)"))
    assert torch.equal(plain, encode(host, toybox[1], "a Photo of a ROBOT"))
    assert torch.isfinite(encode(host, toybox[1], "ein Foto, 写真 of zebras & quartz " * 40)).all()


def test_training_reads_captions_exactly_as_the_host_encodes_them(host, toybox):
    from toybox.making.captions import ANSWERS, Captions
    from toybox.making.train_diffusion import Denoiser

    clip = toybox[1]
    captions = Captions(clip.tokenize, torch.device("cpu"))
    told = [(0, 0, 0, 0), (4, ANSWERS[1].index(("red", "blue")), 1, 1 + list(ANSWERS[3][1:]).index("snow"))]
    numbers = [captions.empty, *captions.numbers(torch.tensor(told)).tolist()]
    prompts = ["", "a photo of a robot", "a photo of a red and blue cat facing left in the snow"]
    denoiser = Denoiser(toybox[0].model.diffusion_model, clip.cond_stage_model.clip_l.transformer, captions)
    with torch.inference_mode():
        learned = denoiser.context(torch.tensor(numbers))
    assert close(learned, torch.cat([encode(host, clip, text) for text in prompts]), RUN)
    assert not learned[1, 7:].any() and learned[1, :7].any(-1).all(), "the UNet must read words, not padding"


def test_an_embedding_file_can_name_the_subject(host, toybox, pack):
    folder = Path(host.folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": torch.randn(2, 96)}, folder / "mytoy.safetensors")
    clip = host.nodes["ToyboxLoader"]().load()[1]
    subject_of = pack.module("dreammatcher.host.text.conditioning").subject_of
    subject = subject_of(clip, "a photo of embedding:mytoy at night", "embedding:mytoy")
    assert subject.columns == (4, 5)
    states = encode(host, clip, "a photo of embedding:mytoy at night")
    assert states[0, :9].any(-1).all() and not states[0, 9:].any()


def test_words_of_several_pieces_and_repeated_words_count_every_piece(toybox, pack):
    subject_of = pack.module("dreammatcher.host.text.conditioning").subject_of
    assert subject_of(toybox[1], "a photo of a zebra", "zebra").columns == (5, 6, 7, 8, 9)
    assert subject_of(toybox[1], "a red robot and a blue robot", "robot").columns == (3, 7)
    assert subject_of(toybox[1], "a (red:1.3) robot, at night", "red, robot").columns == (2, 3)


def test_a_subject_behind_the_77_token_border_is_found_in_the_second_chunk(toybox, pack):
    prompt = "grass " * 80 + "robot"
    subject = pack.module("dreammatcher.host.text.conditioning").subject_of(toybox[1], prompt, "robot")
    assert subject.tokens == 154 and subject.columns == (77 + 1 + 5,)


def test_the_autoencoder_brings_a_picture_back(host, toybox):
    image, _ = host.nodes["ToyboxReference"]().draw(1, "cat", 1, "snow")
    with torch.inference_mode():
        back = toybox[2].decode(toybox[2].encode(image))
    assert back.shape == image.shape and (back - image).abs().mean() < 0.04


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_lora_file_composes_on_either_side_of_apply(host, where):
    folder = host.folder / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    host.folder_paths.add_model_folder_path("loras", str(folder))
    name = "lora_unet_output_blocks_4_1_transformer_blocks_0_attn1_to_v"
    generator = torch.Generator().manual_seed(0)
    save_file({f"{name}.lora_down.weight": torch.randn(4, 64, generator=generator) * 0.2,
               f"{name}.lora_up.weight": torch.randn(64, 4, generator=generator) * 0.2,
               f"{name}.alpha": torch.tensor(4.0)}, folder / "toy.safetensors")
    prompt = full_control()
    for number in ("7", "11", "12"):
        prompt[number]["inputs"]["steps"] = 6
    plain = host.run(prompt)
    prompt["20"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name="toy.safetensors", strength_model=1.0)
    if where == "before":
        prompt["9"]["inputs"]["model"] = ["20", 0]
    else:
        prompt["20"]["inputs"]["model"] = ["9", 0]
        prompt["12"]["inputs"]["model"] = ["20", 0]
    result = host.run(prompt)
    assert result.success, result.error()
    with_lora, without = (host.images(r, "16")[0].tobytes() for r in (result, plain))
    assert with_lora != without
    assert host.images(result, "15")[0].tobytes() == host.images(plain, "15")[0].tobytes()


def test_a_missing_or_foreign_model_file_is_named(host, pack, tmp_path):
    load = pack.module("toybox.host").load
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors is missing"):
        load(tmp_path / "nowhere.safetensors", ROOT / "toybox" / "tokenizer")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is not a Toybox model"):
        load(tmp_path / "other.safetensors", ROOT / "toybox" / "tokenizer")


def test_the_comparison_with_the_official_code_hands_over_every_weight_prompt_and_token(host, tmp_path):
    import json

    from safetensors.torch import load_file

    from benchmarks import against_official
    from benchmarks.toybox_runner import ToyboxRunner
    from toybox.evaluation import cases

    runner = ToyboxRunner(host)
    with torch.inference_mode():
        against_official.write_job(runner, cases(3, 200), tmp_path / "job.safetensors")
    tensors, job = load_file(tmp_path / "job.safetensors"), json.loads((tmp_path / "job.json").read_text())
    handed = [name for name in tensors if name.startswith("unet.")]
    assert len(handed) == len(runner.model.model.diffusion_model.state_dict())
    assert len(set(job["prompts"])) == len(job["prompts"]) and job["prompts"][0] == ""
    for number, case in enumerate(job["cases"]):
        words = case["prompt"].split()
        assert words[case["token"] - 1] == words[4] == case["reference_prompt"].split()[case["reference_token"] - 1]
        assert torch.allclose(tensors[f"noise.{number}"].std(), torch.tensor(1.0), atol=0.1)
        assert f"context.{job['prompts'].index(case['prompt'])}" in tensors
