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
