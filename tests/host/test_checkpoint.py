"""An SD1.5-shaped checkpoint through the stock loader, at 256x384, with a real photograph as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from harness.examples import node
from harness.library import ROOT

TOYBOX = ROOT / "toybox"


@pytest.fixture(scope="module")
def checkpoint(host, pack):
    """A narrow SD1.5 (32 channels, all 12 output blocks) in one file, and a family entry while the module runs."""
    import comfy.supported_models
    import comfy.supported_models_base

    toybox = pack.module("toybox.host")

    class Narrow(comfy.supported_models.SD15):
        unet_config = {**comfy.supported_models.SD15.unet_config, "context_dim": 96, "model_channels": 32}

        def clip_target(self, state_dict={}):  # noqa: B006  the host's signature
            return toybox.clip_target(TOYBOX / "tokenizer")

    config = Narrow({
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2] * 4,
        "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "use_spatial_transformer": True,
        "use_linear_in_transformer": False, "context_dim": 96, "adm_in_channels": None, "use_temporal_attention": False,
        "legacy": False})
    config.set_inference_dtype(torch.float32, None)
    unet = config.get_model({}, "", device="cpu").diffusion_model
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in unet.state_dict().items():
        tensor = torch.randn(value.shape, generator=generator) / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 \
            else torch.full(value.shape, float(name.endswith("weight")))
        weights[f"model.diffusion_model.{name}"] = tensor.half()
    trained = pack.module("toybox.int8").dequantise(load_file(TOYBOX / "model.safetensors"))
    weights.update({name.replace("cond_stage_model.clip_l.", "cond_stage_model."): value
                    for name, value in trained.items() if not name.startswith("model.diffusion_model.")})
    folder = host.folder / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "narrow.safetensors")
    host.folder_paths.add_model_folder_path("checkpoints", str(folder))
    comfy.supported_models.models.insert(0, Narrow)
    yield "narrow.safetensors"
    comfy.supported_models.models.remove(Narrow)


@pytest.fixture(scope="module")
def photograph(host) -> str:
    """A photograph of a cat, in the host's input folder."""
    from skimage.data import chelsea

    picture = Image.fromarray(np.asarray(chelsea())).resize((384, 256), Image.LANCZOS)
    picture.save(f"{host.folder_paths.get_input_directory()}/chelsea.png")
    return "chelsea.png"


def test_a_photograph_is_matched_at_256x384_by_a_stock_checkpoint(host, checkpoint, photograph):
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": node("LoadImage", image=photograph),
        "3": node("VAEEncode", pixels=["2", 0], vae=["1", 2]),
        "4": node("DreamMatcherSubject", clip=["1", 1], prompt="a photo of a cat", subject_words="cat"),
        "5": node("CLIPTextEncode", clip=["1", 1], text=""),
        "6": node("DreamMatcherInvert", model=["1", 0], reference=["3", 0], positive=["4", 0], negative=["5", 0], steps=2,
                  scheduler="normal"),
        "7": node("DreamMatcherMask", reference_subject=["4", 1], target_subject=["4", 1], cycle_threshold=0.4,
                  binarise="soft"),
        "8": node("DreamMatcherApply", model=["1", 0], reference=["6", 0], mask=["7", 0], strength=1.0, start=0.0, end=1.0,
                  layers=""),
        "9": node("EmptyLatentImage", width=256, height=384, batch_size=1),
        "10": node("KSampler", model=["8", 0], positive=["4", 0], negative=["5", 0], latent_image=["9", 0], seed=1, steps=2,
                   cfg=3.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0),
        "11": node("VAEDecode", samples=["10", 0], vae=["1", 2]),
        "12": node("DreamMatcherPreview", trace=["8", 1], images=["11", 0], reference=["2", 0]),
    }
    result = host.run(prompt)
    assert result.success, result.error()
    sheet = host.images(result, "12")[0]
    assert sheet.height > 2 * 320 and sheet.width >= 3 * 320 * 256 // 384


def test_the_backbone_of_sd15_is_the_papers(host, pack, checkpoint):
    model = host.nodes["CheckpointLoaderSimple"]().load_checkpoint(checkpoint)[0]
    found = pack.module("dreammatcher.host.model.backbone").backbone_of(model.model)
    assert sorted({number for _, number, _ in found.self_attention}) == [6, 7, 8, 9, 10, 11]
    assert found.taps == (6, 9)
    assert sorted(found.map_sites((64, 64))) == [("input", 7, 0), ("input", 8, 0), ("output", 3, 0), ("output", 4, 0),
                                                 ("output", 5, 0)]
