"""Toybox-Z in the host's own class: trained by the trainer's step, saved, loaded, sampled and patched as any model is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from closeness import RUN, close
from flow_world import toybox_transformer
from safetensors.torch import save_file

from harness.library import ROOT

MODEL = ROOT / "toybox" / "model.safetensors"
TOKENIZER = ROOT / "toybox" / "tokenizer"
LAYERS = 2


@pytest.fixture
def transformer(pack):
    """Toybox's module of it, where the host has the class."""
    return toybox_transformer(pack)


@pytest.fixture
def flow(transformer, monkeypatch):
    """The trainer in float32, with the host told that it trains."""
    import comfy.model_management

    from toybox.making import train_flow

    monkeypatch.setattr(comfy.model_management, "in_training", True, raising=False)
    monkeypatch.setattr(train_flow, "half_precision", lambda device: nullcontext())
    with torch.enable_grad():
        yield train_flow


@pytest.fixture
def denoiser(flow):
    torch.manual_seed(0)
    model = flow.FlowDenoiser(LAYERS, torch.randn(5, 77, 96), torch.device("cpu"))
    flow.prepare(model)
    return model


def batch_of(count: int, side: int = 16, width: int = 16):
    from toybox.making.material import Batch
    from toybox.shapes import PART_LABELS

    generator = torch.Generator().manual_seed(1)
    parts = torch.randint(len(PART_LABELS), (count, side, width), generator=generator, dtype=torch.uint8)
    return Batch(torch.randn(count, 4, side, width, generator=generator), {16: parts}, torch.arange(count) % 5)


def awake(denoiser) -> None:
    """Every weight that begins as zero at a random value, so that the model computes something."""
    generator = torch.Generator().manual_seed(2)
    for value in denoiser.transformer.parameters():
        if not value.any():
            value.data = 0.3 * torch.randn(value.shape, generator=generator)


def file_of(denoiser, folder):
    from toybox.host import UNET_PREFIX
    from toybox.int8 import quantise

    path = folder / "z.safetensors"
    weights = {UNET_PREFIX + name: value.detach() for name, value in denoiser.transformer.state_dict().items()}
    save_file(quantise(weights), path)
    return path


def test_a_host_without_the_class_is_told_in_one_sentence(pack, host):
    if host.upstream:
        pytest.skip("this host has the class")
    with pytest.raises(RuntimeError, match="needs a ComfyUI that knows Z-Image.*or choose the UNet"):
        pack.module("toybox.transformer").load(MODEL, MODEL, TOKENIZER)


def test_the_loader_gives_the_model_that_is_chosen(host, transformer):
    """Both with the same text encoder and autoencoder; a graph that chooses none gets the UNet."""
    load = host.nodes["ToyboxLoader"]().load
    (unet, _, _), (chosen, clip, vae) = load(), load(model="transformer")
    assert type(unet.model.diffusion_model).__name__ == "UNetModel"
    assert isinstance(chosen.model, transformer.host_class()) and len(chosen.model.diffusion_model.layers) == transformer.LAYERS
    with torch.inference_mode():
        encode = host.nodes["CLIPTextEncode"]().encode
        positive, negative = encode(clip, "a photo of a robot on grass")[0], encode(clip, "")[0]
        latent = host.nodes["KSampler"]().sample(chosen, 1, 20, 4.0, "euler", "simple", positive, negative,
                                                 {"samples": torch.zeros(1, 4, 16, 16)})[0]
        picture = (vae.decode(latent["samples"])[0].clamp(0, 1) * 255).round().byte().numpy()
    from toybox.judge import load_judge, look

    seen = look(load_judge(), picture)
    assert (seen.kind, seen.scene) == ("robot", "grass")


def test_a_new_model_predicts_nothing_so_its_loss_is_that_of_zero(flow, denoiser):
    batch, device = batch_of(4), torch.device("cpu")
    torch.manual_seed(3)
    loss = flow.velocity_loss(denoiser, batch)
    torch.manual_seed(3)
    noise, sigmas = torch.randn_like(batch.clean), flow.noise_levels(4, device)
    told = flow.part_loss(denoiser, batch.parts[16])
    velocity = (noise - batch.clean).square().mean((1, 2, 3)) / flow.TYPICAL
    assert close(loss, (velocity + flow.PART_WEIGHT * (1 - sigmas) * told).mean(), RUN)


def test_the_model_predicts_the_velocity_from_clean_to_noise(flow, denoiser):
    """With the right velocity the loss is the part labels' alone, so its sign and direction are what the sampler takes."""
    batch = batch_of(4)
    torch.manual_seed(3)
    noise = torch.randn_like(batch.clean)
    denoiser.forward = lambda noisy, sigmas, captions, references: (denoiser.transformer(
        noisy, sigmas, denoiser.context[captions], 77) * 0 + noise - batch.clean)
    torch.manual_seed(3)
    loss = flow.velocity_loss(denoiser, batch)
    torch.manual_seed(3)
    torch.randn_like(batch.clean)
    sigmas = flow.noise_levels(4, torch.device("cpu"))
    told = flow.part_loss(denoiser, batch.parts[16])
    assert close(loss, (flow.PART_WEIGHT * (1 - sigmas) * told).mean(), RUN)


def test_steps_on_one_batch_lower_its_loss_and_leave_the_pads_alone(flow, denoiser, tmp_path):
    from toybox.making.optimisation import Run

    batch = batch_of(4)
    pads = [denoiser.transformer.x_pad_token.clone(), denoiser.transformer.cap_pad_token.clone()]
    run, losses = Run("z", tmp_path, denoiser, 60, 3e-3, network=denoiser.transformer), []

    def loss():
        torch.manual_seed(7)
        losses.append(flow.velocity_loss(denoiser, batch))
        return losses[-1]

    step = run.stepper(loss)
    typical = denoiser.typical.clone()
    for _ in range(25):
        denoiser.typical.copy_(typical)
        run.optimisers.set_rate(3e-3)
        step()
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(pads[0], denoiser.transformer.x_pad_token) and torch.equal(pads[1], denoiser.transformer.cap_pad_token)


def test_pairs_are_twice_as_wide_and_their_parts_are_read_from_every_picture_token(flow, denoiser):
    loss = flow.velocity_loss(denoiser, batch_of(2, width=32))
    loss.backward()
    assert torch.isfinite(loss) and denoiser.features.shape[1] == 96 + 16 * 32
    assert all(torch.isfinite(value.grad).all() for value in denoiser.parameters() if value.grad is not None)


def test_what_was_trained_is_what_the_host_loads_and_runs(flow, denoiser, transformer, tmp_path, monkeypatch):
    import comfy.model_management

    awake(denoiser)
    model, clip, vae = transformer.load(file_of(denoiser, tmp_path), MODEL, TOKENIZER)
    network = model.model.diffusion_model
    denoiser.transformer.load_state_dict(network.state_dict())  # the file's eight bits
    x, context = torch.randn(2, 4, 16, 24), torch.randn(2, 77, 96)
    with torch.no_grad():
        ours = denoiser.transformer(x, torch.tensor([0.3, 0.8]), context, 77)
        monkeypatch.setattr(comfy.model_management, "in_training", False)
        theirs = network(x, torch.tensor([0.3, 0.8]), context=context, num_tokens=77)
    assert close(ours, theirs, RUN) and ours.abs().max() > 0.1 and len(network.layers) == LAYERS
    assert clip is not None and vae is not None


def test_it_samples_through_the_stock_nodes_and_takes_loras(host, flow, denoiser, transformer, tmp_path, monkeypatch):
    import comfy.lora
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "in_training", False)
    awake(denoiser)
    model, clip, vae = transformer.load(file_of(denoiser, tmp_path), MODEL, TOKENIZER)

    def drawn(model, text: str) -> torch.Tensor:
        with torch.inference_mode():
            encode = host.nodes["CLIPTextEncode"]().encode
            positive, negative = encode(clip, text)[0], encode(clip, "")[0]
            return host.nodes["KSampler"]().sample(model, 1, 4, 4.0, "euler", "simple", positive, negative,
                                                   {"samples": torch.zeros(1, 4, 16, 16)})[0]["samples"]

    plain = drawn(model, "a photo of a robot")
    assert torch.isfinite(plain).all() and not torch.equal(plain, drawn(model, "a photo of a cat in the snow"))
    assert torch.isfinite(drawn(model, "a photo of a robot " * 40)).all(), "a long prompt has several times 77 columns"
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    name = "diffusion_model.layers.0.attention.qkv"
    assert keys[name] == f"{name}.weight"
    generator = torch.Generator().manual_seed(0)
    save_file({f"{name}.lora_up.weight": torch.randn(768, 2, generator=generator),
               f"{name}.lora_down.weight": torch.randn(2, 256, generator=generator)}, tmp_path / "lora.safetensors")
    import comfy.utils

    patched = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors")), 1, 0)[0]
    assert not torch.equal(drawn(patched, "a photo of a robot"), plain)
    assert torch.equal(drawn(model, "a photo of a robot"), plain)


def test_captions_are_encoded_as_the_host_encodes_them(host, toybox, transformer):
    from toybox.making.captions import Captions
    from toybox.making.train_transformer import encode_captions

    clip = toybox[1]
    captions = Captions(clip.tokenize, torch.device("cpu"))
    number = captions.empty
    text = clip.cond_stage_model.clip_l.transformer
    encoded = encode_captions(text, captions.tokens[number:], captions.ends[number:])
    with torch.inference_mode():
        stock = host.nodes["CLIPTextEncode"]().encode(clip, "")[0][0][0]
    assert close(encoded, stock.half(), 8)


def test_latents_are_kept_part_by_part(tmp_path, transformer, monkeypatch):
    import numpy as np

    from toybox.making import train_transformer

    monkeypatch.setattr(train_transformer, "ENCODED_AT_ONCE", 2)
    pictures, seen = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 128, 128, 3), np.uint8), []

    def encode(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        if sum(seen) == 4:
            raise KeyboardInterrupt
        return part[:, :16, :16, :1].permute(0, 3, 1, 2).expand(-1, 4, -1, -1).half()

    with pytest.raises(KeyboardInterrupt):
        train_transformer.encode_pictures(encode, pictures, tmp_path / "latents.pt")
    latents = train_transformer.encode_pictures(encode, pictures, tmp_path / "latents.pt")
    assert latents[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and seen == [2, 2, 2, 1]
    again = train_transformer.encode_pictures(encode, pictures[:3], tmp_path / "latents.pt")
    assert len(again) == 3 and seen == [2, 2, 2, 1]


def test_the_table_of_matches_counts_cells_whose_nearest_shows_the_same_part(host):
    from benchmarks.block_matches import chance, same_part

    generator = torch.Generator().manual_seed(0)
    source, order = torch.randn(2, 12, 8, generator=generator), torch.randperm(12, generator=generator)
    offered = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3]]).repeat(2, 1)
    target, wanted = 3 * source[:, order] + 1, offered[:, order]
    assert same_part(target, source, wanted, offered) == 1.0
    others = torch.where(wanted == 2, 4, wanted)  # two of ten cells show what the source does not
    assert same_part(target, source, others, offered) == pytest.approx(0.8)
    assert same_part(-target, source, wanted, offered) < 0.7, "the farthest is not the nearest"
    assert chance(wanted, offered) == pytest.approx((4 * 4 + 2 * 2 + 4 * 4) / 100)


def test_the_table_of_matches_reads_the_picture_tokens_of_every_block(flow, denoiser, transformer, tmp_path, host, monkeypatch):
    import comfy.model_management

    from benchmarks.block_matches import BLOCK, KEY, MODULATED, OUTPUT, QUERY, VALUE, kept, run
    from benchmarks.toybox_runner import SAMPLINGS, ToyboxRunner
    from toybox.evaluation import cases

    awake(denoiser)
    path = file_of(denoiser, tmp_path)
    monkeypatch.setattr(comfy.model_management, "in_training", False)
    monkeypatch.setitem(SAMPLINGS, "z", replace(SAMPLINGS["z"], steps=2))
    runner = ToyboxRunner(host, path, kind="z")
    network = runner.model.model.diffusion_model
    with torch.inference_mode():
        with kept(network.layers, 256) as tensors:
            network(torch.randn(1, 4, 16, 16), torch.tensor([0.4]), context=torch.randn(1, 77, 96), num_tokens=77)
        every = BLOCK, KEY, MODULATED, OUTPUT, QUERY, VALUE
        assert set(tensors) == {(name, number) for name in every for number in range(LAYERS)}
        assert all(tensor.shape == (1, 256, 256) for tensor in tensors.values())
        parts = torch.cat([tensors[name, 1] for name in (QUERY, KEY, VALUE)], -1)
        assert close(parts, network.layers[1].attention.qkv(tensors[MODULATED, 1]), RUN)
        drawn = runner.sample(runner.model, runner.prompt("a photo of a cat")[0], runner.prompt("")[0], cases(1)[0].seed)
    assert drawn.shape == (128, 128, 3) and drawn.std() > 1
    table, by_chance = run(runner, 2)
    assert set(table) == {0.2, 0.4, 0.6, 0.8} and 0 < by_chance < 1
    assert all(0 <= share <= 1 for rows in table.values() for blocks in rows.values() for share in blocks.values())


@pytest.mark.parametrize("study", ["arms", "parts"])
def test_every_arm_of_the_transformers_studies_draws_something_of_its_own(flow, denoiser, transformer, tmp_path, host,
                                                                          monkeypatch, study):
    import comfy.model_management

    from benchmarks import rivals
    from benchmarks.toybox_runner import ToyboxRunner
    from benchmarks.transformer_arms import STUDIES
    from toybox.evaluation import cases

    awake(denoiser)
    path = file_of(denoiser, tmp_path)
    monkeypatch.setattr(comfy.model_management, "in_training", False)
    runner = ToyboxRunner(host, path, kind="z", steps=6)
    case = cases(1)[0]
    with torch.inference_mode():
        ready = runner.prepare(case)
        drawn = {name: runner.sample(model, ready.target, ready.negative, case.seed)
                 for name, model in STUDIES[study](runner, ready).items()}
        never = runner.sample(rivals.copied(runner, ready, 1.0), ready.target, ready.negative, case.seed)
    assert (never == drawn["plain"]).all(), "nothing is copied where no noise level is left for it"
    for name, picture in drawn.items():
        assert name == "plain" or (picture != drawn["plain"]).any(), name
