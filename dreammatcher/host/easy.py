"""The whole method with its defaults, for the one-node way."""

from __future__ import annotations

import torch

from ..settings import ApplySettings
from .apply import apply
from .conditioning import encode, subject_of
from .invert import invert_reference
from .masks import mask_settings

STEPS, SCHEDULER, THRESHOLD = 50, "ddim_uniform", 0.4


def match_subject(model, clip, vae, reference: torch.Tensor, reference_prompt: str, prompt: str, negative: str, words: str):
    """MODEL, positive, negative and trace for one reference IMAGE [B, H, W, 3], of which the first is used."""
    reference_subject = subject_of(clip, reference_prompt, words)
    target_subject = subject_of(clip, prompt, words)
    latent = {"samples": vae.encode(reference[:1, :, :, :3])}
    avoided = encode(clip, negative)
    inverted, _ = invert_reference(
        model, latent, encode(clip, reference_prompt, reference_subject), avoided, STEPS, SCHEDULER)
    mask = mask_settings(reference_subject, target_subject, None, None, THRESHOLD, False)
    matched, trace = apply(model, inverted, mask, ApplySettings())
    return matched, encode(clip, prompt, target_subject), avoided, trace
