"""The whole method with its defaults, for the one-node way."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...matching.guidance import BEST_GUIDANCE
from ...matching.reference import Reference
from ...matching.settings import BALANCED, BEST, BEST_START, ApplySettings, Trace, match_settings_of
from ..graph.pictures import rgb, subject_mask
from ..graph.vae import encoded
from ..model.backbone import backbone_of
from ..model.digest import digest
from ..model.family import native_side
from ..model.identity import network_identity
from ..text.conditioning import encode, encode_subject, encoded_as
from ..text.other_encoders import UnknownEncoder
from .apply import apply
from .both_prompts import subjects_of_both
from .guide import guide, is_led
from .invert import invert_reference, load
from .masks import THRESHOLD, mask_settings
from .picture import least_side, sized

STEPS, SCHEDULER = 50, "ddim_uniform"


@dataclass(eq=False)
class Kept:
    """The last inversion of one node with everything it came from, so that a new prompt does not invert again."""

    source: str = ""
    reference: Reference | None = None

    def inverted(self, model, latent: torch.Tensor, positive: list, negative: list) -> Reference:
        load(model, latent)
        source = digest(network_identity(model), latent, positive[0], negative[0])
        if self.reference is None or self.source != source:
            self.reference, _ = invert_reference(model, {"samples": latent}, positive, negative, STEPS, SCHEDULER)
            self.source = source
        return self.reference


def match_subject(model, clip, vae, reference: torch.Tensor, reference_prompt: str, prompt: str, negative: str, words: str,
                  kept: Kept, reference_mask: torch.Tensor | None = None,
                  strength: float = 1.0, preset: str = BALANCED) -> tuple[tuple, tuple[str, ...]]:
    """MODEL, positive, negative and trace for one reference IMAGE [B, H, W, C], of which the first is used, and remarks.

    Without ``words``, those that both prompts share are the subject, but for medium and scene, or else those of each. A
    ``strength`` of 0 is the plain model: nothing is inverted. ``reference_mask`` [B, h, w], or else what is not transparent in
    the reference, is its subject. With ``preset`` BEST the foreground is carried over, matching begins later, and guidance leads
    the subject's inside.

    Where the text encoders do not tell where words stand, the mask alone says which subject it is, and is carried over.

    Raises ValueError, naming the input, when there is none then, a subject word is missing in one of the prompts, the picture is
    too small or too long for the model, nothing of it is left to match, or it is not finite, as it is, as a latent, or for the
    model.
    """
    best = preset == BEST
    settings = ApplySettings(strength, BEST_START if best else ApplySettings.start, match=match_settings_of(preset))
    try:
        reference_subject, target_subject, remarks = subjects_of_both(clip, reference_prompt, prompt, words)
        positive, target_subject = encode_subject(clip, prompt, target_subject)
    except UnknownEncoder:  # the mask says which subject
        if strength and reference_mask is None and subject_mask("reference", reference[:1]) is None:
            raise
        reference_subject, target_subject, remarks, positive = None, None, (), encode(clip, prompt)
    avoided = encode(clip, negative)
    if strength == 0:
        return (model, positive, avoided, Trace(off=True)), remarks
    picture = sized(rgb("reference", reference[:1]), native_side(model), least_side(backbone_of(model.model)))
    if reference_mask is None:
        reference_mask = subject_mask("reference", reference[:1])
    shown = encode(clip, reference_prompt)
    if reference_subject is not None:
        reference_subject = encoded_as(clip, reference_subject, clip.tokenize(reference_prompt), shown[0])
    mask = mask_settings(reference_subject, target_subject, reference_mask, None, THRESHOLD, True, best or target_subject is None)
    inverted = kept.inverted(model, encoded(vae, picture, "reference: it"), shown, avoided)
    matched, trace = apply(model, inverted, mask, settings)
    if best and not is_led(matched):  # another subject's node has done so for both
        matched = guide(matched, BEST_GUIDANCE)
    return (matched, positive, avoided, trace), remarks
