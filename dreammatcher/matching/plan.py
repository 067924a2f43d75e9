"""A plan of matching: the references, the model's backbone and the artist's choices, none of which changes while it samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..backbones.base import Backbone, Site
from ..subject import Subject
from ..uncopied import Uncopied
from .features import FeatureStore
from .reference import Member, Reference, ReferenceSet, views_of
from .settings import ApplySettings, MaskSettings, Trace

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class View:
    """One reference as a plan uses it."""

    reference: Reference
    store: FeatureStore
    subject: Subject | None
    mask: torch.Tensor | None  # [1, 1, H, W], painted
    weight: float


@dataclass(frozen=True, eq=False)
class Plan(Uncopied):
    """One Apply (DreamMatcher)."""

    base: Any
    backbone: Backbone
    layers: tuple[Site, ...]
    views: tuple[View, ...]
    mask: MaskSettings
    settings: ApplySettings
    trace: Trace

    def content_identity(self) -> tuple:
        """Everything that the plan changes in a model's results."""
        return self.layers, self.views, self.mask, self.settings

    def rivals(self, other: Plan) -> bool:
        """True if another plan on the same model is about another subject."""
        mine, theirs = self.mask.target_subject, other.mask.target_subject
        if mine is None or theirs is None:
            return other is not self
        return other is not self and (mine.prompt, mine.columns) != (theirs.prompt, theirs.columns)


def members_in_use(given: Reference | ReferenceSet, mask: MaskSettings | None,
                   warn: Callable[[str], None] = log.warning) -> list[tuple[Member, Subject | None]]:
    """The references of weight above 0 and the subject of each: the mask node's where a reference stands alone, else its own.

    Each stands where the reference's own prompt has it; of a subject of another text, which is left out, ``warn`` is told.

    Raises ValueError when every reference has weight 0, and for a reference MASK that could belong to any of several.
    """
    members = [member for member in views_of(given) if member.weight > 0]
    if not members:
        raise ValueError("reference: every combined reference has weight 0; give one of them a weight above 0")
    marked = mask.reference_subject if mask else None
    if len(members) == 1:
        return [(members[0], _located(marked or members[0].reference.subject, members[0].reference, warn))]
    if mask is not None and mask.reference_mask is not None:
        raise ValueError(f"reference_mask: {len(members)} references are combined; give each its own mask in Combine "
                         "References (DreamMatcher)")
    return [(member, _located(member.reference.subject or marked, member.reference, warn)) for member in members]


def _located(subject: Subject | None, reference: Reference, warn: Callable[[str], None]) -> Subject | None:
    if subject is None:
        return None
    located, remark = subject.located(reference.positive.text, subject == reference.subject)
    if remark:
        warn(f"reference: {remark}")
    return located


def views(given: Reference | ReferenceSet, mask: MaskSettings, warn: Callable[[str], None] = log.warning) -> tuple[View, ...]:
    """The references that :func:`members_in_use` finds, in the form that a plan uses."""
    return tuple(
        View(member.reference, member.reference.store, subject,
             mask.reference_mask if member.mask is None else member.mask, member.weight)
        for member, subject in members_in_use(given, mask, warn))
