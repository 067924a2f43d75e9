"""Installs appearance matching on a clone of the user's model: its patches and the start and end of a run."""

from __future__ import annotations

import logging

import comfy.model_management
import torch

from ...matching.plan import Plan, views
from ...matching.reference import Reference, ReferenceSet, views_of
from ...matching.settings import ApplySettings, MaskSettings, Trace
from ...unet import structure_of
from .. import patches
from ..installed import PLANS_KEY, Seat, seats_of
from ..lifecycle import SessionHolder, install
from .begin import begin
from .live import SILENT, Live, watch

log = logging.getLogger(__name__)


def check_family(reference: Reference, family: str, channels: int) -> None:
    """Raises ValueError when a reference was made with a model of another kind."""
    if reference.latent.shape[1] != channels:
        raise ValueError(f"reference: its latent has {reference.latent.shape[1]} channels, this model takes {channels}")
    if reference.fingerprint != family:
        raise ValueError(f"reference: it was made with another model family ({reference.fingerprint}); this model is "
                         f"({family}). Invert the reference again with this model")


def apply(model, reference: Reference | ReferenceSet, mask: MaskSettings, settings: ApplySettings, layers: str = "",
          live: Live = SILENT):
    """A clone of ``model`` that matches ``reference`` while sampling, and the trace it fills.

    Raises ValueError for a model that is no UNet, a reference of another family and layers the model does not have.
    """
    structure = structure_of(model.model)
    for member in views_of(reference):
        check_family(member.reference, structure.family, model.model.latent_format.latent_channels)
    plan = Plan(model.model, structure, structure.chosen(layers), views(reference, mask), mask, settings, Trace())
    for view in plan.views:
        if not view.store.sigmas:  # what is made ahead of sampling has its room already
            view.store.capacity = comfy.model_management.get_total_memory(torch.device("cpu")) // (4 * len(plan.views))
    clone = model.clone()
    seat = Seat(plan, SessionHolder())
    install(clone, plan, seat.holder, begin)
    options = clone.model_options["transformer_options"] = dict(clone.model_options["transformer_options"])
    options["patches"] = dict(options.get("patches", {}))
    options[PLANS_KEY] = (*seats_of(options), seat)
    patches.install(clone)
    watch(clone, seat, live)
    return clone, plan.trace
