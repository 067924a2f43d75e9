"""Every model class of the host is matched and listed in README, or refused by its name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from closeness import RUN, close
from transformers_world import SIGMA, TRANSFORMERS, applied, bench_of, drawn, evaluated, made, other_reference, reference_of

from harness.library import ROOT

#: entries of the host's list whose network is matched, and the name in README's table
LISTED = {"ZImage": "Z-Image", "Lumina2": "Lumina 2", "Flux": "Flux.1", "FluxSchnell": "Flux.1", "FluxInpaint": "Fill",
          "LongCatImage": "LongCat", "Chroma": "Chroma", "Krea2": "Krea 2", "SD3": "SD3", "HiDream": "HiDream", "Flux2": "Flux.2",
          "QwenImage": "Qwen-Image", "Anima": "Anima", "CosmosT2IPredict2": "Cosmos-Predict2",
          "CosmosI2VPredict2": "Cosmos-Predict2", "WAN21_T2V": "Wan", "WAN22_T2V": "Wan", "WAN21_I2V": "Wan",
          "WAN21_FunControl2V": "Wan"}
#: what some entries look into before they make their network
ASKED_FOR = {"in_channels": 4, "hidden_size": 96}
WEIGHTS = {"cc_projection.weight": torch.zeros(2, 2), "cc_projection.bias": torch.zeros(2)}
#: those that share a network with a family and differ from it in what they are given
RELATED = {"Flux.1 Fill": ("FluxInpaint", {**TRANSFORMERS["Flux.1"][1], "in_channels": 96}, 32),
           "LongCat": ("LongCatImage", {**TRANSFORMERS["Flux.1"][1], "vec_in_dim": None, "guidance_embed": False,
                                        "txt_ids_dims": [1, 2]}, None),
           "Wan 2.2": ("WAN22_T2V", {**TRANSFORMERS["Wan"][1], "in_dim": 48, "out_dim": 48}, None),
           "Wan 2.1 I2V": ("WAN21_I2V", {**TRANSFORMERS["Wan"][1], "model_type": "i2v", "in_dim": 36}, None),
           "Cosmos-Predict2 I2V": ("CosmosI2VPredict2", {**TRANSFORMERS["Cosmos-Predict2"][1], "in_channels": 17}, None)}


class Told(Exception):
    """A model says what it is made of, before it is made."""


@pytest.fixture
def classes(monkeypatch) -> dict:
    """By entry of the host's list: a model whose network has its class, and nothing in it."""
    import comfy.model_base
    import comfy.supported_models

    def tell(self, config, model_type=comfy.model_base.ModelType.EPS, device=None, unet_model=comfy.model_base.UNetModel):
        raise Told(SimpleNamespace(diffusion_model=unet_model.__new__(unet_model), model_config=config, model_type=model_type))

    monkeypatch.setattr(comfy.model_base.BaseModel, "__init__", tell)
    found = {}
    for entry in comfy.supported_models.models:
        with pytest.raises(Told) as told:
            entry({**ASKED_FOR, **entry.unet_config}).get_model(dict(WEIGHTS), "", device="cpu")
        found[entry.__name__] = told.value.args[0]
    return found


def table() -> str:
    """The rows of README's table of transformers."""
    models = (ROOT / "README.md").read_text(encoding="utf-8").split("## Models")[1]
    return "\n".join(line for line in models.split("## ")[0].splitlines() if line.startswith("|"))


def test_every_transformer_of_the_host_is_listed_or_refused_by_its_name(pack, classes):
    backbone = pack.module("dreammatcher.host.model.backbone")
    assert len(classes) >= 20
    for entry, base in classes.items():
        network = type(base.diffusion_model)
        if issubclass(network, backbone.UNetModel):
            continue
        if network in backbone.BACKBONES and base.model_type.name not in backbone.WITHOUT_NOISE:
            assert LISTED.get(entry, "no name") in table(), f"{entry} is matched, and README's table does not say so"
            continue
        with pytest.raises(ValueError) as refused:
            backbone.backbone_of(base)
        said = str(refused.value)
        assert said.startswith("model: ") and "is not matched; use an " in said and entry in said, said
    known = {entry for entry in LISTED if entry in classes and len(backbone.BACKBONES) > 1}
    assert all(type(classes[entry].diffusion_model) in backbone.BACKBONES for entry in known)


def test_models_that_begin_with_no_noise_are_refused(pack, classes):
    backbone = pack.module("dreammatcher.host.model.backbone")
    without = [base for base in classes.values() if base.model_type.name in backbone.WITHOUT_NOISE]
    for base in without:
        with pytest.raises(ValueError, match=f"{type(base.model_config).__name__} makes a picture of another one"):
            backbone.backbone_of(base)
    if "WAN21_FlowRVS" in classes:
        assert {type(base.model_config).__name__ for base in without} >= {"LotusD", "WAN21_FlowRVS"}


@pytest.mark.parametrize("name", list(RELATED))
def test_relatives_of_a_family_are_matched_as_it_is(pack, monkeypatch, name):
    monkeypatch.setitem(TRANSFORMERS, name, RELATED[name])
    family = bench_of(pack, name)
    clean, noise, x = made(family)
    matched, trace = applied(family, reference_of(family, clean, noise, family.positive))
    plain, result = (evaluated(model, family.positive, family.negative, [(x, SIGMA)] * 2) for model in (family.model, matched))
    assert all(close(ours, theirs, RUN) for ours, theirs in zip(result, plain))
    assert trace.layers and not trace.skipped and trace.last().flow.abs().max() == 0
    patch, width = family.backbone.patch, x.shape[-1] // family.backbone.patch
    moved = [torch.roll(each, 3 * patch, -1) for each in (clean, noise)]
    matched, trace = applied(family, reference_of(family, *moved, family.positive))
    evaluated(matched, family.positive, family.negative, [(x, SIGMA)] * 2)
    assert bool(((trace.last().flow[0, 0] - 3) % width == 0).all()) and not trace.last().flow[0, 1].any()
    off, _ = applied(family, other_reference(family), strength=0.0)
    assert torch.equal(*(drawn(model, family.longer, family.negative, cfg=3.0) for model in (family.model, off)))
