"""What does not change while sampling: the references, the model's structure and the user's choices."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..features import FeatureOptions, FeatureStore, Layer
from ..reference import Reference, ReferenceSet, Subject, views_of
from ..settings import ApplySettings, MaskSettings, Trace
from .structure import Structure

#: where a model's plans stand in its transformer options, for patches of other plans and for guidance
PLANS_KEY = "dreammatcher"


@dataclass(frozen=True, eq=False)
class View:
    """One reference as a plan uses it."""

    reference: Reference
    store: FeatureStore
    subject: Subject | None
    mask: torch.Tensor | None  # [1, 1, H, W], limits the match
    weight: float


@dataclass(frozen=True, eq=False)
class Plan:
    """One DreamMatcher Apply."""

    base: torch.nn.Module
    structure: Structure
    layers: tuple[Layer, ...]
    views: tuple[View, ...]
    mask: MaskSettings
    settings: ApplySettings
    trace: Trace

    def __deepcopy__(self, memo: dict) -> Plan:
        return self

    @property
    def pca(self) -> int | None:
        return self.views[0].store.options.pca

    def rivals(self, other: Plan) -> bool:
        """Whether another plan on the same model is about another subject."""
        mine, theirs = self.mask.target_subject, other.mask.target_subject
        return other is not self and (mine is None or theirs is None or mine.columns != theirs.columns)


@dataclass(frozen=True, eq=False)
class Seat:
    """A plan on a model: where its call stands in the transformer options, and who holds its run."""

    key: str
    plan: Plan
    holder: object  # lifecycle.RunHolder

    def __deepcopy__(self, memo: dict) -> Seat:
        return self


def seats_of(options: dict) -> tuple[Seat, ...]:
    """Every plan in some transformer options, in the order they were applied."""
    return options.get(PLANS_KEY, ())


def views(given: Reference | ReferenceSet, mask: MaskSettings) -> tuple[View, ...]:
    """The references in use. The mask node's own subject and MASK are those of a reference that stands alone.

    Raises ValueError when every reference of a set has weight 0.
    """
    members = [member for member in views_of(given) if member.weight > 0]
    if not members:
        raise ValueError("reference: every combined reference has weight 0; give one of them a weight above 0")
    alone = len(members) == 1
    made = []
    for member in members:
        own = member.reference.subject
        subject = (mask.reference_subject or own) if alone else (own or mask.reference_subject)
        limit = member.mask if member.mask is not None else (mask.reference_mask if alone else None)
        store = member.reference.store or FeatureStore(FeatureOptions())
        made.append(View(member.reference, store, subject, limit, member.weight))
    return tuple(made)
