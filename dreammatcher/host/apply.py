"""Installs appearance matching on a clone of the user's model: four lists of patches and the start of a run."""

from __future__ import annotations

import logging
import uuid

import comfy.model_management
import torch

from ..features import Layer
from ..reference import Reference, ReferenceSet, views_of
from ..settings import ApplySettings, MaskSettings, Trace
from .call import Call
from .capture import SubjectMaps, layer_of
from .lifecycle import RunHolder, install
from .live import SILENT, Live, watch
from .plan import PLANS_KEY, Plan, Seat, seats_of, views
from .prompts import looks
from .run import Run, noise_level
from .structure import structure_of

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
    seat = Seat(f"dreammatcher_{uuid.uuid4().hex}", plan, RunHolder())
    install(clone, plan, seat.holder)
    options = clone.model_options["transformer_options"] = dict(clone.model_options["transformer_options"])
    options["patches"] = dict(options.get("patches", {}))
    options[PLANS_KEY] = (*seats_of(options), seat)
    _install_patches(clone, seat)
    watch(clone, seat, live)
    return clone, plan.trace


def _install_patches(model, seat: Seat) -> None:
    """Patches are thin: what torch.compile may see of them says only whether there is something to do."""
    key, plan, holder = seat.key, seat.plan, seat.holder

    def begin(h, options):
        if options["block"] == ("input", 0):
            options[key] = holder.call(_begin_call, seat, h, options)
        return h

    def read_maps(n, context, value, extra):
        call = extra.get(key)
        return holder.call(_read_map, call, n, context, value, layer_of(extra)) if call else (n, context, value)

    def inject(n, context, value, extra):
        call, layer = extra.get(key), layer_of(extra)
        wanted = call and (call.detached or layer in plan.layers)
        return holder.call(_inject, call, n, context, value, layer) if wanted else (n, context, value)

    def keep_level(h, skip, options):
        call = options.get(key)
        if call and options["block"][1] in plan.structure.taps:
            holder.call(call.keep_level, options["block"][1], h)
        return h, skip

    for patch, name in ((begin, "input_block_patch"), (read_maps, "attn2_patch"), (inject, "attn1_patch"),
                        (keep_level, "output_block_patch")):
        _set_first(model, patch, name)


def _read_map(call: Call, n, context, value, layer: Layer) -> tuple:
    if call.detached:
        n, context, value = (x.detach() if torch.is_tensor(x) else x for x in (n, context, value))
    with torch.no_grad():
        call.read_map(layer, n, context)
    return n, context, value


def _inject(call: Call, n, context, value, layer: Layer) -> tuple:
    if call.detached:
        n, context, value = (x.detach() for x in (n, context, value))
    if layer in call.run.plan.layers and call.run.active(call.sigma):
        with torch.no_grad():
            context, value = call.inject(layer, context, value)
    return n, context, value


def _set_first(model, patch, name: str) -> None:
    """Adds a patch in front of those of other packs, which may regroup tokens: ours sees them as the UNet made them."""
    model.set_model_patch(patch, name)
    patches = model.model_options["transformer_options"]["patches"]
    ours = [p for p in patches[name] if getattr(p, "dreammatcher", False)]
    patch.dreammatcher = True
    patches[name] = [*ours, patch, *(p for p in patches[name][:-1] if p not in ours)]


def _begin_call(seat: Seat, h: torch.Tensor, options: dict) -> Call | None:
    run, plan = seat.holder.run(), seat.plan
    if run is None or plan.settings.strength == 0:
        return None
    sigma = noise_level(options["sigmas"])
    if sigma < run.sigma_end:
        return None
    run.arrive(sigma, options["sigmas"])
    latent_size = tuple(h.shape[-2:])
    readers = None
    if plan.mask.target_mask is None and run.active(sigma):
        readers = SubjectMaps.of(run.base, plan.structure, plan.mask.target_subject, latent_size)
    detached = torch.is_grad_enabled() and h.requires_grad
    return Call(run, sigma, tuple(options["cond_or_uncond"]), latent_size, readers, looks(h, sigma),
                rival_runs(seat, options, sigma), detached)


def rival_runs(seat: Seat, options: dict, sigma: float) -> list[Run]:
    """Runs of other subjects on the same model that are matched at ``sigma``."""
    others = (other.holder.run() for other in seats_of(options) if seat.plan.rivals(other.plan))
    return [run for run in others if run is not None and run.active(sigma)]
