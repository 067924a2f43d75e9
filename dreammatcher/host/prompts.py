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


@dataclass(frozen=True, eq=False)
class Prompt:
    """One positive prompt of a run."""

    subject: Subject | None
    probe: torch.Tensor  # [T, 4], float32 on the CPU

    @staticmethod
    def of(entry: dict, cross_attention: torch.Tensor) -> Prompt:
        return Prompt(entry.get(SUBJECT_KEY), cross_attention[0, :, :PROBE].detach().float().cpu())

    def is_in(self, context: torch.Tensor) -> bool:
        """Whether a row's context [T', C] is this prompt: the same values but for rounding, once or repeated."""
        tokens = self.probe.shape[0]
        if context.shape[0] < tokens or context.shape[0] % tokens:
            return False
        seen = context[:tokens, :PROBE].detach().float().cpu()
        return bool((seen - self.probe).abs().max() <= 0.02 * self.probe.abs().max())

    def names(self, subject: Subject | None) -> bool:
        return self.subject is not None and subject is not None and self.subject.words == subject.words
