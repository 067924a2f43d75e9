"""Parts of the example workflows."""

from __future__ import annotations

from typing import Any

STEPS, CFG = 50, 7.5
SD15 = "v1-5-pruned-emaonly-fp16.safetensors"


def node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(model: list, positive: list, negative: list, latent: list, seed: int = 1) -> dict[str, Any]:
    return node("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=seed, steps=STEPS,
                cfg=CFG, sampler_name="ddim", scheduler="ddim_uniform", denoise=1.0)


def saved(first: int, model: list, positive: list, negative: list, latent: list, name: str, seed: int = 1) -> dict[str, Any]:
    """Three nodes, by their numbers from ``first`` on: a picture is sampled, decoded by the VAE of node 1, and saved under a
    name."""
    return {
        str(first): sampler(model, positive, negative, latent, seed),
        str(first + 1): node("VAEDecode", samples=[str(first), 0], vae=["1", 2]),
        str(first + 2): node("SaveImage", images=[str(first + 1), 0], filename_prefix=f"dreammatcher/{name}"),
    }
