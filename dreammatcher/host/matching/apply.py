"""Installs appearance matching on a clone of the user's model: its patches and the start and end of a run."""

from __future__ import annotations

import logging
from dataclasses import replace

from comfy.model_patcher import ModelPatcher

from ...backbones.dit import DiTBackbone
from ...matching.plan import Plan, views
from ...matching.reference import Reference, ReferenceSet, views_of
from ...matching.settings import REPLACED, ApplySettings, MaskSettings, Trace
from ..graph.notes import not_connected, tell
from ..graph.records import owner_here
from ..model.backbone import backbone_of
from ..sampling.lifecycle import install_plan
from ..sampling.runs import INSTALLED_KEY
from .begin import begin
from .live import SILENT, Live, watch
from .patches import install_points

log = logging.getLogger(__name__)

PASSED = "the model goes on as it is"
UNNAMED = "without target_subject"


def check_family(reference: Reference, family: str, channels: int) -> None:
    """Raises ValueError when a reference was made with a model of another kind."""
    if reference.latent.shape[1] != channels:
        raise ValueError(f"reference: its latent has {reference.latent.shape[1]} channels, this model takes {channels}")
    if reference.fingerprint != family:
        raise ValueError(f"reference: it was made with another model family ({reference.fingerprint}); this model is "
                         f"({family}). Invert the reference again with this model")


def apply_or_pass(model: ModelPatcher, reference: Reference | ReferenceSet | None, mask: MaskSettings | None,
                  settings: ApplySettings, layers: str, live: Live) -> tuple[ModelPatcher, Trace]:
    """:func:`apply`; without a reference or anything that says what the subject is, the model as it is, with a note, and a trace
    that says so."""
    if reference is None:
        source = "Invert Reference (DreamMatcher) or another node in front"
        return model, Trace(missing=not_connected("reference", source, PASSED))
    if mask is None:
        return model, Trace(missing=not_connected("mask", "Mask (DreamMatcher)", f"{UNNAMED} {PASSED}"))
    return apply(model, reference, mask, settings, layers, live)


def apply(model: ModelPatcher, reference: Reference | ReferenceSet, mask: MaskSettings, settings: ApplySettings, layers: str = "",
          live: Live = SILENT) -> tuple[ModelPatcher, Trace]:
    """A clone of ``model`` that matches ``reference`` while sampling, and the trace it fills.

    Raises ValueError for an unknown family of models, a reference of another one and layers the model does not have; for
    transformers, also for keys and values that are replaced.
    """
    backbone = backbone_of(model.model)
    for member in views_of(reference):
        check_family(member.reference, backbone.family, model.model.latent_format.latent_channels)
    references = views(reference, mask, tell)
    if mask.carried and any(view.mask is None and view.subject is None for view in references):
        tell("reference: nothing says where its subject is, so that no foreground can be carried over from it; the target's "
             "attention to its words is taken. Connect reference_subject or a MASK to Mask (DreamMatcher)")
        mask = replace(mask, carried=False)
    if settings.injection == REPLACED and isinstance(backbone, DiTBackbone):
        raise ValueError(f"injection: {REPLACED!r} works in a UNet alone; use 'matched'")
    plan = Plan(model.model, backbone, backbone.chosen(layers), references, mask, settings, Trace(owner=owner_here()))
    clone, installed = install_plan(model, plan, INSTALLED_KEY, begin)
    install_points(clone, backbone)
    watch(clone, installed, live)
    return clone, plan.trace
