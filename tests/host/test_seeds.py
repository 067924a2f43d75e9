"""Seeds of any size that the host's samplers take, through the host's own check of a prompt and every generator of ours."""

from __future__ import annotations

import pytest
import torch
from graph_around import linked

from harness.graphs import node

LARGEST = 2**64 - 1


def test_every_seed_of_ours_has_the_range_of_the_hosts_sampler(host):
    sampler = host.nodes["KSampler"].INPUT_TYPES()["required"]["seed"][1]
    ranges = {}
    for name, kind in host.nodes.items():
        if name.startswith(("DreamMatcher", "Toybox")):
            declared = kind.INPUT_TYPES()
            inputs = {**declared.get("required", {}), **declared.get("optional", {})}
            if "seed" in inputs:
                ranges[name] = inputs["seed"][1]
    assert len(ranges) >= 8
    assert all((seed["min"], seed["max"]) == (sampler["min"], sampler["max"]) for seed in ranges.values())


def training(host, kind: str, seed: object) -> dict:
    prompt = {"1": node("ToyboxLoader")}
    for pose in (1, 2):
        prompt[f"1{pose}"] = node("ToyboxReference", subject=LARGEST, kind="robot", pose=LARGEST - pose, background="grass")
    prompt["13"] = node("ImageBatch", image1=["11", 0], image2=["12", 0])
    prompt["2"] = node("DreamMatcherTrainingSet", identifier="sks", class_word="robot", template="photo", resolution=128,
                       images=["13", 0])
    models = dict(model=["1", 0], clip=["1", 1], vae=["1", 2])
    common = dict(**models, training_set=["2", 0], seed=seed)
    prompt["3"] = {
        "DreamMatcherDreamBooth": lambda: node("DreamMatcherDreamBooth", **common, kind="LoRA", steps=1, rate=1e-4,
                                               prior_set=["4", 0]),
        "DreamMatcherTextualInversion": lambda: node("DreamMatcherTextualInversion", **common, initial_word="robot", vectors=1,
                                                     steps=1, rate=1e-3),
        "DreamMatcherCustomDiffusion": lambda: node("DreamMatcherCustomDiffusion", **common, initial_word="robot", steps=1,
                                                    rate=1e-5),
        "DreamMatcherViCoTrain": lambda: node("DreamMatcherViCoTrain", **common, initial_word="robot", steps=1, word_rate=0.01,
                                              block_rate=1e-4, batch=1),
        "DreamMatcherSeFiTrain": lambda: node(
            "DreamMatcherSeFiTrain", **models, image=["11", 0], identifier="<me>", class_word="robot", seed=seed, steps=1,
            reference_prompt="a photo of a robot", resolution=128, rate=1e-4, attention_weight=0.0),
    }[kind]()
    if kind == "DreamMatcherDreamBooth":
        prompt["4"] = node("DreamMatcherPriorSet", **common, count=2, steps=1, cfg=1.0, sampler_name="dpmpp_sde",
                           scheduler="normal")
    loss = {"DreamMatcherViCoTrain": 2, "DreamMatcherSeFiTrain": 1}.get(kind, 3)
    prompt["5"] = node("PreviewImage", images=["3", loss])
    return prompt


@pytest.mark.parametrize("by_link", [False, True], ids=["typed", "linked"])
@pytest.mark.parametrize("kind", ["DreamMatcherDreamBooth", "DreamMatcherTextualInversion", "DreamMatcherCustomDiffusion",
                                  "DreamMatcherViCoTrain", "DreamMatcherSeFiTrain"])
def test_a_training_takes_the_largest_seed(host, kind, by_link):
    prompt = training(host, kind, ["6", 0] if by_link else LARGEST)
    if by_link:
        prompt["6"] = linked(host, LARGEST)
    result = host.run(prompt)
    assert result.success, result.error()


def test_the_host_refuses_a_typed_seed_beyond_its_range_and_the_node_a_linked_one(host):
    with pytest.raises(ValueError, match="refused"):
        host.check(training(host, "DreamMatcherTextualInversion", LARGEST + 1))
    prompt = training(host, "DreamMatcherTextualInversion", ["6", 0])
    prompt["6"] = linked(host, -1)
    assert "seed: -1 is outside" in host.run(prompt).error()


def test_class_pictures_of_a_large_seed_go_on_at_zero(pack, toybox):
    """Picture 1 of the largest seed is picture 0 of seed 0."""
    prior = pack.module("dreammatcher.host.training.prior")
    with torch.inference_mode():
        text = pack.module("dreammatcher.host.text.conditioning").encode(toybox[1], "a robot")
        first, second = (
            prior._draw(toybox[0], toybox[2], text, text, 128, prior.PriorSettings(2, 1, 1.0, "euler", "normal", seed), number)
            for seed, number in ((LARGEST, 1), (0, 0)))
    assert torch.equal(first, second)
