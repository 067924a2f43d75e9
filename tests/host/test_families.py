"""Every UNet family, in its exact layout: where attention is found, and that matching and guidance work there."""

from __future__ import annotations

import pytest
import torch
from world import FAMILIES, Bench, family_unet, picture, prompt, sample

POOLED = {name: 1280 if parts[-1] else None for name, parts in FAMILIES.items()}

#: output blocks of the two finest decoder scales with attention, decoder features, scale of the subject maps at 64 cells
EXPECTED = {
    "SD1.5": ([6, 7, 8, 9, 10, 11], (6, 9), 2),
    "SD2.1": ([6, 7, 8, 9, 10, 11], (6, 9), 2),
    "SDXL": ([0, 1, 2, 3, 4, 5], (0, 3), 2),
    "SSD-1B": ([0, 1, 2, 3, 4, 5], (0, 3), 2),
    "Vega": ([0, 1, 2, 3, 4, 5], (0, 3), 2),
    "KOALA 700M": ([0, 1, 2, 3], (0, 2), 2),
    "KOALA 1B": ([0, 1, 2, 3], (0, 2), 2),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, pack):
    return request.param, Bench(pack, family_unet(request.param), height=16, width=24, steps=6, pooled=POOLED[request.param])


def test_layers_are_found_from_the_models_own_modules(pack, family):
    name, bench = family
    backbone = pack.module("dreammatcher.host.model.backbone").backbone_of(bench.model.model)
    blocks, taps, map_level = EXPECTED[name]
    assert sorted({number for _, number, _ in backbone.self_attention}) == blocks
    assert backbone.taps == taps
    assert {backbone.cross_attention[layer] for layer in backbone.map_sites((64, 64))} == {map_level}
    sites = sum(type(module).__name__ == "BasicTransformerBlock" for module in bench.model.model.diffusion_model.modules())
    assert len(backbone.cross_attention) == sites


def test_the_family_is_matched_and_its_plain_picture_stays(family):
    name, bench = family
    options = dict(height=16, width=24, steps=4)
    plain = bench.sample(**options)
    matched, trace = bench.apply()
    out = bench.sample(matched, **options)
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert not trace.skipped and trace.last().target_mask.max() == 1
    assert torch.equal(bench.sample(**options), plain)


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_the_family_is_guided(pack, family, mode):
    name, bench = family
    matched, trace = bench.apply()
    settings = pack.module("dreammatcher.matching.guidance").GuidanceSettings(0.2, 0.0, 1.0, mode)
    guided = pack.module("dreammatcher.host.matching.guide").guide(matched, settings)
    options = dict(height=16, width=24, steps=4)
    assert not torch.equal(bench.sample(guided, **options), bench.sample(matched, **options))
    assert not any("not possible" in reason for reason in trace.skipped)


@pytest.mark.parametrize("name", ["SD2.1", "SDXL"])
def test_velocity_models_of_the_larger_families_are_matched(pack, name):
    bench = Bench(pack, family_unet(name, prediction="V_PREDICTION"), steps=6, pooled=POOLED[name])
    matched, trace = bench.apply()
    out = bench.sample(matched, steps=4)
    assert torch.isfinite(out).all() and not torch.equal(out, bench.sample(steps=4)) and not trace.skipped


@pytest.mark.parametrize("name", ["SD1.5", "SDXL"])
def test_inpainting_models_are_inverted_and_matched_inside_the_mask(pack, name):
    bench = Bench(pack, family_unet(name, inputs=9), steps=6, pooled=POOLED[name])
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 8:] = 1
    known = picture(77)
    options = dict(concat_mask=hole, concat_latent_image=known)
    positive, negative = ([[entry[0][0], {**entry[0][1], **options}]] for entry in (bench.target, bench.negative))
    matched, trace = bench.apply()
    plain, out = (sample(model, positive, negative, steps=4) for model in (bench.model, matched))
    assert torch.isfinite(out).all() and not torch.equal(out, plain) and not trace.skipped


def test_a_pooled_embedding_that_is_missing_is_named(pack):
    with pytest.raises(ValueError, match="needs a pooled text embedding"):
        Bench(pack, family_unet("SDXL"), steps=2)


def test_a_reference_of_sd1_does_not_serve_sdxl(pack):
    small = Bench(pack, family_unet("SD1.5"), steps=2)
    with pytest.raises(ValueError, match="another model family"):
        small.apply(family_unet("SDXL"))


def test_a_transformer_is_refused_by_name(pack):
    import comfy.supported_models

    class Tiny(comfy.supported_models.SD3):
        unet_config = {"in_channels": 16, "patch_size": 2, "depth": 1, "input_size": None, "adm_in_channels": 64,
                       "num_patches": 36, "pos_embed_max_size": 6, "pos_embed_scaling_factor": None, "context_size": 96,
                       "context_embedder_config": {
                           "target": "torch.nn.Linear", "params": {"in_features": 96, "out_features": 64}}}

    family = Tiny(Tiny.unet_config)
    family.set_inference_dtype(torch.float32, None)
    base = family.get_model({}, "", device="cpu")
    with pytest.raises(ValueError, match="is not a UNet.*so Tiny is not matched; use an SD1.x, SD2.x or SDXL"):
        pack.module("dreammatcher.host.model.backbone").backbone_of(base)


def test_a_refiner_like_prompt_of_another_width_is_the_hosts_own_error(pack):
    bench = Bench(pack, family_unet("SDXL"), steps=2, pooled=1280)
    matched, _ = bench.apply()
    with pytest.raises(RuntimeError):
        sample(matched, prompt(3, width=64, pooled=1280), bench.negative, steps=2)
    assert torch.isfinite(bench.sample(matched, steps=2)).all(), "the model must work after the error"


def test_subject_words_are_found_through_sdxls_two_tokenizers(pack):
    """Both text encoders see the same positions; the first one's tokens name the columns."""
    import comfy.sdxl_clip

    class Tokens:
        def tokenize(self, text, return_word_ids=False, **_):
            return self.tokenizer.tokenize_with_weights(text, return_word_ids)

    clip = Tokens()
    clip.tokenizer = comfy.sdxl_clip.SDXLTokenizer()
    subject_of = pack.module("dreammatcher.host.text.conditioning").subject_of
    subject = subject_of(clip, "a photo of a (fluffy:1.2) labradoodle on grass", "labradoodle")
    whole, alone = (clip.tokenize(text) for text in ("a photo of a (fluffy:1.2) labradoodle on grass", "labradoodle"))
    for encoder in ("g", "l"):
        named = [whole[encoder][0][column][0] for column in subject.columns]
        assert named == [entry[0] for entry in alone[encoder][0][1:1 + len(named)]], "every piece, in both encoders"
    assert subject.tokens == 77 and len(subject.columns) > 1
