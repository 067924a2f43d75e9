"""What prompts of some transformers hold beside their tokens reaches the reference's passes too."""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from transformers_world import SIGMA, SIZE, TRANSFORMERS, applied, bench_of, drawn, evaluated, latent_of, made, reference_of
from world import prompt


def told(bench, **more) -> list:
    """The positive prompt with more than its tokens."""
    return [[bench.positive[0][0], {**bench.positive[0][1], **more}]]


def found(bench, positive: list, reference_prompt: list, file=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain and matched estimates of a reference that is the target itself, but for its prompt."""
    clean, noise, x = made(bench)
    reference = reference_of(bench, clean, noise, reference_prompt)
    if file is not None:
        module = bench.pack.module("dreammatcher.matching.reference")
        module.save(reference, file)
        reference = module.load(file)
    matched, trace = applied(bench, reference)
    plain, result = (evaluated(model, positive, bench.negative, [(x, SIGMA)] * 2)[-1] for model in (bench.model, matched))
    assert trace.layers and not trace.skipped
    return plain, result


PADDED = torch.tensor([[1] * 12 + [0] * 8])


@pytest.mark.parametrize("name, more", [("Flux.1", {"guidance": 7.0}), ("Qwen-Image", {"attention_mask": PADDED}),
                                        ("HiDream", {"conditioning_llama3": torch.randn(
                                            1, 3, 9, 32, generator=torch.Generator().manual_seed(8))})])
def test_the_reference_is_seen_with_all_that_its_prompt_tells(pack, tmp_path, name, more):
    """With distilled guidance, padding or a second encoder left out, it would not be the target any more."""
    bench = bench_of(pack, name)
    positive = told(bench, **more)
    for file in (None, tmp_path / "reference.safetensors"):
        plain, result = found(bench, positive, positive, file)
        assert close(result, plain, RUN)
    plain, other = found(bench, positive, bench.positive)
    assert not close(other, plain, RUN)


def test_animas_prompt_goes_through_its_adapter_in_the_references_passes_too(pack, monkeypatch):
    """The prompt is Qwen's; the tokens of T5 that the network reads it by stand beside it."""
    kind, config, _ = TRANSFORMERS["Cosmos-Predict2"]
    config = {**config, "crossattn_emb_channels": 1024, "image_model": "anima"}
    monkeypatch.setitem(TRANSFORMERS, "Anima", ("Anima", config, None))
    anima = bench_of(pack, "Anima")
    anima.positive, anima.negative = (prompt(seed, 20, 1024) for seed in (1, 2))
    tokens = {"t5xxl_ids": torch.arange(3, 14, dtype=torch.int), "t5xxl_weights": torch.linspace(0.5, 1.5, 11)}
    positive = told(anima, **tokens)
    plain, result = found(anima, positive, positive)
    assert close(result, plain, RUN)
    plain, other = found(anima, positive, anima.positive)
    assert not close(other, plain, RUN)


def test_a_picture_beside_the_target_is_left_alone(pack):
    """HiDream-E1 has its source in the right half of every row."""
    bench = bench_of(pack, "HiDream")
    edited = told(bench, concat_latent_image=latent_of(bench.model, 3, *SIZE))
    clean, noise, x = made(bench)
    moved = [torch.roll(each, 2, -1) for each in (clean, noise)]
    matched, trace = applied(bench, reference_of(bench, *moved, bench.positive))
    plain, result = (evaluated(model, edited, bench.negative, [(x, SIGMA)] * 2)[-1] for model in (bench.model, matched))
    assert trace.layers and not trace.skipped and not close(result, plain, RUN)
    assert ((trace.last().flow[0, 0] - 1) % 8 == 0).float().mean() > 0.9
    off, _ = applied(bench, reference_of(bench, *moved, bench.positive), strength=0.0)
    assert torch.equal(evaluated(off, edited, bench.negative, [(x, SIGMA)])[0], evaluated(
        bench.model, edited, bench.negative, [(x, SIGMA)])[0])


@pytest.mark.parametrize("name", ["SD3.5", "SD3.5 Medium"])
def test_blocks_that_others_skip_or_replace_keep_their_numbers(pack, name):
    """As Skip Layer Guidance does, and whoever holds a block's slot is still called."""
    bench, called = bench_of(pack, name), []
    model = bench.model.clone()

    def held(arguments, more):
        called.append(arguments["transformer_options"].get("block_index"))
        return more["original_block"](arguments)

    model.set_model_patch_replace(lambda arguments, more: arguments, "dit", "double_block", 1)
    model.set_model_patch_replace(held, "dit", "double_block", 2)
    clean, noise, x = made(bench)
    matched, trace = applied(bench, reference_of(bench, clean, noise, bench.positive), model=model)
    evaluated(matched, bench.positive, bench.negative, [(x, SIGMA)] * 2)
    assert trace.layers == 2 + 3 and not trace.skipped and set(called) == {2}
    off, _ = applied(bench, reference_of(bench, clean, noise, bench.positive), model=model, strength=0.0)
    assert torch.equal(*(drawn(each, bench.longer, bench.negative, cfg=3.0) for each in (model, off)))
