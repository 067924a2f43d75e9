"""The whole method with its defaults, for the one-node way."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import comfy.utils
import torch
from einops import rearrange

from ...matching.reference import Reference
from ...matching.settings import ApplySettings
from ...subject import Subject
from ...unet import Structure, structure_of
from ..conditioning import encode, subject_and_remarks
from ..content import shared_words
from ..encoding import encoded
from ..family import native_side
from ..lifecycle import weights_of
from ..pictures import rgb, subject_mask
from ..words import Text
from .apply import apply
from .invert import invert_reference, load
from .masks import mask_settings

STEPS, SCHEDULER, THRESHOLD = 50, "ddim_uniform", 0.4
CELL = 8  # pixels of a latent cell


@dataclass(eq=False)
class Kept:
    """The last inversion of one node with everything it came from, so that a new prompt does not invert again."""

    sources: tuple = ()
    reference: Reference | None = None

    def inverted(self, model, latent: torch.Tensor, positive: list, negative: list) -> Reference:
        load(model, latent)
        sources = (weakref.ref(model.model), weights_of(model), latent, positive[0][0], negative[0][0])
        if len(self.sources) != len(sources) or not all(map(_same, self.sources, sources)):
            made, _ = invert_reference(model, {"samples": latent}, positive, negative, STEPS, SCHEDULER)
            self.sources, self.reference = sources, made
        return self.reference


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if torch.is_tensor(a) else a is b or a == b


def least_side(structure: Structure) -> int:
    """Pixels of the shorter side that make one cell at the UNet's coarsest level."""
    return CELL * 2 ** max(structure.cross_attention.values())


def sized(picture: torch.Tensor, side: int, least: int) -> torch.Tensor:
    """``picture`` [1, H, W, 3], made smaller when it has more pixels than a square of ``side``: a camera's photo takes hours.

    Raises ValueError, naming the input, when the shorter side has less than ``least`` pixels before or after.
    """
    height, width = picture.shape[1:3]
    scale = min(1.0, side / (height * width) ** 0.5)
    if min(height, width) < least:
        raise ValueError(f"reference: it is {width}x{height} pixels; this model needs at least {least} on the shorter side. Give "
                         "a larger picture")
    if min(height, width) * scale < least:
        raise ValueError(f"reference: {width}x{height} pixels are too long and narrow; at the size that this model was made for, "
                         f"{round(width * scale)}x{round(height * scale)}, the shorter side has less than {least}. Crop the "
                         "picture to the subject")
    if scale == 1:
        return picture
    height, width = (int(given * scale) // CELL * CELL for given in (height, width))
    planes = comfy.utils.common_upscale(rearrange(picture, "b h w c -> b c h w"), width, height, "lanczos", "disabled")
    return rearrange(planes, "b c h w -> b h w c")


def match_subject(model, clip, vae, reference: torch.Tensor, reference_prompt: str, prompt: str, negative: str, words: str,
                  kept: Kept, reference_mask: torch.Tensor | None = None) -> tuple[tuple, tuple[str, ...]]:
    """MODEL, positive, negative and trace for one reference IMAGE [B, H, W, C], of which the first is used, and remarks.

    Without ``words``, the content words that both prompts share are the subject, or else all content words of each.
    The match stays inside of ``reference_mask`` [B, h, w], or else of what is not transparent in the reference. Raises
    ValueError, naming the input, when a subject word is missing in one of the prompts, the picture is too small or too long
    for the model, nothing of it is left to match, or it is not finite, as it is, as a latent, or for the model.
    """
    words, said = _words_or_shared(clip, words, prompt, reference_prompt)
    reference_subject, remarks = _subject(clip, "reference_prompt", reference_prompt, words)
    target_subject, more = _subject(clip, "prompt", prompt, words)
    picture = sized(rgb("reference", reference[:1]), native_side(model), least_side(structure_of(model.model)))
    if reference_mask is None:
        reference_mask = subject_mask("reference", reference[:1])
    mask = mask_settings(reference_subject, target_subject, reference_mask, None, THRESHOLD, True)
    avoided = encode(clip, negative)
    inverted = kept.inverted(model, encoded(vae, picture, "reference: it"), encode(clip, reference_prompt), avoided)
    matched, trace = apply(model, inverted, mask, ApplySettings())
    return (matched, encode(clip, prompt, target_subject), avoided, trace), said + remarks + more


def _words_or_shared(clip, words: str, *prompts: str) -> tuple[str, tuple[str, ...]]:
    """``words``, or where none are given those that all prompts share, with a remark; empty when they share none."""
    if words.replace(",", " ").strip():
        return words, ()
    shared = " ".join(shared_words([Text.of(clip, prompt) for prompt in prompts]))
    return shared, (f"subject_words: none given; the words that both prompts share are taken: {shared}",) if shared else ()


def _subject(clip, name: str, text: str, words: str) -> tuple[Subject, tuple[str, ...]]:
    """:func:`subject_and_remarks`, whose error and remarks say which of the two prompts they are about."""
    try:
        subject, remarks = subject_and_remarks(clip, text, words)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return subject, tuple(f"{name}: {remark}" for remark in remarks)
