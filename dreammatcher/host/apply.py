"""Installs appearance matching on a clone of the user's model: three lists of patches and the start of a run."""

from __future__ import annotations

import logging
import uuid

from ..features import FeatureOptions, FeatureStore
from ..reference import Reference
from ..settings import ApplySettings, MaskSettings, Trace
from .capture import SubjectMaps, layer_of
from .lifecycle import RunHolder, install
from .run import Call, Plan, kinds_of
from .structure import structure_of

log = logging.getLogger(__name__)


def check_family(reference: Reference, family: str, channels: int) -> None:
    """Raises ValueError when a reference was made with a model of another kind."""
    if reference.latent.shape[1] != channels:
        raise ValueError(f"reference: its latent has {reference.latent.shape[1]} channels, this model takes {channels}")
    if reference.fingerprint != family:
        raise ValueError(f"reference: it was made with another model family ({reference.fingerprint}); this model is "
                         f"({family}). Invert the reference again with this model")


def apply(model, reference: Reference, mask: MaskSettings, settings: ApplySettings, layers: str = ""):
    """A clone of ``model`` that matches ``reference`` while sampling, and the trace it fills.

    Raises ValueError for a model that is no UNet, a reference of another family and layers the model does not have.
    """
    structure = structure_of(model.model)
    check_family(reference, structure.family, model.model.diffusion_model.in_channels)
    trace = Trace()
    store = reference.store or FeatureStore(FeatureOptions())
    plan = Plan(model.model, structure, structure.chosen(layers), reference, store, mask, settings, trace)
    clone = model.clone()
    holder = RunHolder()
    install(clone, plan, holder)
    _install_patches(clone, plan, holder)
    return clone, trace


def _install_patches(model, plan: Plan, holder: RunHolder) -> None:
    key = f"dreammatcher_{uuid.uuid4().hex}"

    def begin(h, options):
        if options["block"] == ("input", 0):
            options[key] = _begin_call(plan, holder, h, options)
        return h

    def read_maps(n, context, value, extra):
        call = extra.get(key)
        if call:
            call.read_map(layer_of(extra), n, context)
        return n, context, value

    def inject(n, context, value, extra):
        call, layer = extra.get(key), layer_of(extra)
        if call and layer in plan.layers and call.run.active(call.sigma):
            context, value = call.inject(layer, context, value)
        return n, context, value

    def keep_level(h, skip, options):
        call = options.get(key)
        if call and options["block"][1] in plan.structure.taps:
            call.keep_level(options["block"][1], h)
        return h, skip

    model.set_model_patch(begin, "input_block_patch")
    model.set_model_attn2_patch(read_maps)
    model.set_model_attn1_patch(inject)
    model.set_model_output_block_patch(keep_level)


def _begin_call(plan: Plan, holder: RunHolder, h, options: dict) -> Call | None:
    run = holder.run()
    if run is None or plan.settings.strength == 0:
        return None
    sigma = float(options["sigmas"].flatten()[0])
    if sigma < run.sigma_end:
        return None
    kinds = kinds_of(options["cond_or_uncond"])
    latent_size = tuple(h.shape[-2:])
    readers = None
    if plan.mask.target_mask is None and run.active(sigma):
        readers = SubjectMaps.of(plan.base, plan.structure, plan.mask.target_subject, latent_size)
    return Call(run, sigma, kinds, latent_size, readers)
