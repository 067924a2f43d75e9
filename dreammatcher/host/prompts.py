"""Which positive prompts a run has, and which of them a chunk of the batch belongs to.

A run with one positive prompt needs none of this. With several (regions, schedules, combined prompts) a plan serves those
that name its subject: they carry the mark that DreamMatcher Subject leaves in a CONDITIONING.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..reference import Subject
from .conditioning import SUBJECT_KEY

PROBE = 4  # channels of a prompt that are compared
PLACES = 256  # values of a picture that are compared


@dataclass(frozen=True, eq=False)
class Prompt:
    """One positive prompt of a run."""

    subject: Subject | None
    probe: torch.Tensor  # [T, 4], float32 on the CPU
    limited: bool  # to an area of the picture

    @staticmethod
    def of(entry: dict, cross_attention: torch.Tensor) -> Prompt:
        return Prompt(entry.get(SUBJECT_KEY), cross_attention[0, :, :PROBE].detach().float().cpu(),
                      entry.get("area") is not None)

    def is_in(self, context: torch.Tensor) -> bool:
        """Whether a row's context [T', C] is this prompt, but for rounding: once, repeated, or with tokens behind it."""
        tokens = self.probe.shape[0]
        if context.shape[0] < tokens:
            return False
        seen = context[:tokens, :PROBE].detach().float().cpu()
        return bool((seen - self.probe).abs().max() <= 0.02 * self.probe.abs().max())

    def names(self, subject: Subject | None) -> bool:
        return self.subject is not None and subject is not None and self.subject.words == subject.words


@dataclass(frozen=True, eq=False)
class Look:
    """What a row of the batch sees: values of the first block's output, the same for rows that see the same picture."""

    sigma: float
    size: tuple[int, int]
    values: torch.Tensor  # [K]

    def likeness(self, other: Look) -> float:
        """Cosine of two looks at one noise level, or -1 for pictures of different sizes."""
        if self.size != other.size:
            return -1.0
        return float(torch.cosine_similarity(self.values.float(), other.values.float(), dim=0))


def looks(h: torch.Tensor, sigma: float) -> list[Look]:
    """The look of every row of ``h`` [B, C, H, W], the first block's output."""
    values = (h.detach() - h.detach().mean((2, 3), keepdim=True)).flatten(1)
    places = torch.linspace(0, values.shape[1] - 1, min(PLACES, values.shape[1]), device=h.device).long()
    return [Look(sigma, tuple(h.shape[-2:]), row) for row in values.index_select(1, places)]
