"""From the inputs of DreamMatcher Mask to mask settings."""

from __future__ import annotations

import torch

from ...matching.settings import MaskSettings
from ...subject import Subject
from ..masks import mask_grid, one_mask


def mask_settings(
    reference_subject: Subject | None, target_subject: Subject | None, reference_mask: torch.Tensor | None,
    target_mask: torch.Tensor | None, threshold: float, otsu: bool,
) -> MaskSettings:
    """Raises ValueError, naming the input, for masks that are empty, not finite or not [B, H, W]."""
    return MaskSettings(reference_subject, target_subject, one_mask("reference_mask", reference_mask),
                        mask_grid("target_mask", target_mask), threshold, otsu)
