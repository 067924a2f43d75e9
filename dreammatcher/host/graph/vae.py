"""Pictures to latents and back by the host's VAE, which is refused where what it gives is not finite.

A VAE in half precision may overflow, SDXL's first one does: the host draws the picture black then, and says nothing.
"""

from __future__ import annotations

import torch

from ...finite import REMEDY, finite

OVERFLOW = ("this VAE overflows here; start ComfyUI with --fp32-vae, or take a VAE that was made for half precision, as "
          "sdxl-vae-fp16-fix")


def encoded(vae, pictures: torch.Tensor, what: str) -> torch.Tensor:
    """Latents [B, C, h, w] of ``pictures`` [B, H, W, 3]. Raises ValueError when ``what`` holds NaN, or the VAE makes NaN of it.
    """
    if not finite(pictures):
        raise ValueError(f"{what} holds NaN or infinity before it is encoded; look at the node that made it")
    latents = vae.encode(pictures)
    if not finite(latents):
        raise ValueError(f"vae: {what} is NaN or infinity as a latent; {OVERFLOW}")
    return latents


def decoded(vae, latents: torch.Tensor, what: str) -> torch.Tensor:
    """Pictures [B, H, W, 3] of ``latents`` [B, C, h, w].

    Raises ValueError when ``what`` holds NaN: the model drew it so, or the VAE makes NaN of it.
    """
    if not finite(latents):
        raise ValueError(f"model: {what} is NaN or infinity as it was sampled; {REMEDY}")
    pictures = vae.decode(latents)
    if not finite(pictures):
        raise ValueError(f"vae: {what} holds NaN or infinity when it is decoded; {OVERFLOW}")
    return pictures
