"""Which positive prompts a run has, and which of them a chunk of the batch belongs to.

A run with one positive prompt needs none of this. With several (regions, schedules, combined prompts) a plan serves those
that name its subject: they carry the mark that DreamMatcher Subject leaves in a CONDITIONING.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ..matching.reference import Subject
from .conditioning import SUBJECT_KEY

PROBE = 4  # channels of a prompt that are compared
PLACES = 256  # values of a picture that are compared


@dataclass(frozen=True, eq=False)
class Prompt:
    """One positive prompt of a run. One that a schedule encodes anew for each of its spans is still one prompt."""

    subject: Subject | None
    probes: tuple[torch.Tensor, ...]  # [T, 4] each, float32 on the CPU: one for each span
    area: tuple | None  # of the picture, to which it is limited
    masked: bool
    spans: tuple[tuple[float, float], ...]  # noise levels from and to

    @staticmethod
    def of(entry: dict, cross_attention: torch.Tensor) -> Prompt:
        span = float(entry.get("timestep_start", math.inf)), float(entry.get("timestep_end", 0.0))
        return Prompt(entry.get(SUBJECT_KEY), (cross_attention[0, :, :PROBE].detach().float().cpu(),), entry.get("area"),
                      entry.get("mask") is not None, (span,))

    @property
    def limited(self) -> bool:
        """Whether it belongs to an area of the picture."""
        return self.area is not None

    def is_in(self, context: torch.Tensor) -> bool:
        """Whether a row's context [T', C] is this prompt, but for rounding: once, repeated, or with tokens behind it."""
        return any(_begins_with(context, probe) for probe in self.probes)

    def follows(self, other: Prompt) -> bool:
        """Whether both are one prompt of a subject, encoded for different spans of the schedule."""
        return (self.subject is not None and self.subject == other.subject and self.area == other.area
                and not self.masked and not other.masked
                and all(mine[0] <= theirs[1] or theirs[0] <= mine[1] for mine in self.spans for theirs in other.spans))

    def names(self, subject: Subject | None) -> bool:
        return self.subject is not None and subject is not None and self.subject.words == subject.words


def _begins_with(context: torch.Tensor, probe: torch.Tensor) -> bool:
    tokens = probe.shape[0]
    if context.shape[0] < tokens:
        return False
    seen = context[:tokens, :PROBE].detach().float().cpu()
    return bool((seen - probe).abs().max() <= 0.02 * probe.abs().max())


def joined(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts, with those that are one prompt at different times made one."""
    distinct: list[Prompt] = []
    for prompt in prompts:
        number = next((number for number, earlier in enumerate(distinct) if prompt.follows(earlier)), None)
        if number is None:
            distinct.append(prompt)
        else:
            earlier = distinct[number]
            distinct[number] = replace(earlier, probes=earlier.probes + prompt.probes, spans=earlier.spans + prompt.spans)
    return distinct


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
