"""The whole method with its defaults, for the one-node way."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import comfy.utils
import torch
from einops import rearrange

from ..reference import Reference, Subject
from ..settings import ApplySettings
from .apply import apply
from .conditioning import encode, subject_of
from .invert import invert_reference, weights_of
from .masks import mask_settings

STEPS, SCHEDULER, THRESHOLD = 50, "ddim_uniform", 0.4


@dataclass(eq=False)
class Kept:
    """The last inversion of one node with everything it came from, so that a new prompt does not invert again."""

    sources: tuple = ()
    reference: Reference | None = None

    def inverted(self, model, latent: torch.Tensor, positive: list, negative: list) -> Reference:
        sources = (weakref.ref(model.model), weights_of(model, latent), latent, positive[0][0], negative[0][0])
        if len(self.sources) != len(sources) or not all(map(_same, self.sources, sources)):
            made, _ = invert_reference(model, {"samples": latent}, positive, negative, STEPS, SCHEDULER)
            self.sources, self.reference = sources, made
        return self.reference


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if torch.is_tensor(a) else a is b or a == b


def native_area(model) -> int:
    """Pixels of a reference: 1024x1024 for SDXL and its kin, known by their large pooled prompt, 512x512 for SD1.x and SD2.x."""
    pooled = model.model.model_config.unet_config.get("adm_in_channels") or 0
    return 1024 * 1024 if pooled > 2048 else 512 * 512


def sized(picture: torch.Tensor, area: int) -> torch.Tensor:
    """``picture`` [1, H, W, 3], made smaller when it has more pixels than ``area``: a camera's photo would take hours."""
    height, width = picture.shape[1:3]
    if height * width <= area:
        return picture
    scale = (area / (height * width)) ** 0.5
    height, width = (max(64, int(side * scale) // 8 * 8) for side in (height, width))
    planes = comfy.utils.common_upscale(rearrange(picture, "b h w c -> b c h w"), width, height, "lanczos", "disabled")
    return rearrange(planes, "b c h w -> b h w c")


def match_subject(model, clip, vae, reference: torch.Tensor, reference_prompt: str, prompt: str, negative: str, words: str,
                  kept: Kept):
    """MODEL, positive, negative and trace for one reference IMAGE [B, H, W, 3], of which the first is used.

    Raises ValueError, naming the input, when a subject word is missing in one of the prompts.
    """
    reference_subject, target_subject = (_subject(clip, name, text, words) for name, text in (
        ("reference_prompt", reference_prompt), ("prompt", prompt)))
    avoided = encode(clip, negative)
    latent = vae.encode(sized(reference[:1, :, :, :3], native_area(model)))
    inverted = kept.inverted(model, latent, encode(clip, reference_prompt), avoided)
    mask = mask_settings(reference_subject, target_subject, None, None, THRESHOLD, True)
    matched, trace = apply(model, inverted, mask, ApplySettings())
    return matched, encode(clip, prompt, target_subject), avoided, trace


def _subject(clip, name: str, text: str, words: str) -> Subject:
    """:func:`subject_of`, whose error says which of the two prompts it is about."""
    try:
        return subject_of(clip, text, words)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
