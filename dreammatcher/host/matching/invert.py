"""Makes a Reference with the host's model: inversion, reconstruction, and features made ahead of sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...guidance_rows import COND, UNCOND
from ...matching.features import FeatureKey, FeatureOptions, FeatureStore
from ...matching.inversion import invert, psnr, reconstruct
from ...matching.plan import members_in_use
from ...matching.reference import Reference, ReferenceSet, combined
from ...matching.settings import MaskSettings
from ...sizes import single_frame, with_frame
from ...subject import Conditioning, Subject
from ..graph.notes import not_connected, tell
from ..graph.progress import progress
from ..model.arguments import frames, takes_pooled
from ..model.backbone import backbone_of, process_of
from ..model.capture import ode_derivative
from ..model.identity import network_identity
from ..text.conditioning import from_host
from .apply import UNNAMED, check_family
from .reference_foreground import foreground_of
from .reference_pass import reference_pass


def load(model, latent: torch.Tensor) -> Any:
    """Puts the model where it computes, by the host's own management, and returns its BaseModel."""
    comfy.model_management.load_models_gpu([model], model.memory_required([2, *latent.shape[1:]]))
    return model.model


def invert_reference(model, latent: dict, positive: list, negative: list, steps: int, scheduler: str) -> tuple[Reference, dict]:
    """DM_REFERENCE of a picture's LATENT, and the LATENT that the inversion leads back to.

    The inversion runs with the negative prompt, which the paper leaves empty. Raises ValueError, naming the input, for a
    model of an unknown family, a latent that is not one finite picture of the model's channels, and empty conditionings.
    """
    backbone = backbone_of(model.model)
    given = latent["samples"]
    samples = given[:, :, 0] if given.ndim == 5 and given.shape[2] == 1 and frames(model.model) else given
    channels = model.model.latent_format.latent_channels
    if samples.ndim != 4 or samples.shape[0] != 1 or 0 in samples.shape:
        raise ValueError(f"reference LATENT: it is {tuple(given.shape)}; give one picture, [1, {channels}, height, width]")
    if samples.shape[1] != channels:
        raise ValueError(f"reference LATENT: it has {samples.shape[1]} channels, this model takes {channels}; "
                         "encode the picture with this model's VAE")
    (prompt, subject), (empty, _) = (from_host(given, name, tell, takes_pooled(model.model))
                                     for given, name in ((positive, "positive"), (negative, "negative")))
    framed = samples.unsqueeze(2) if frames(model.model) else samples
    base = load(model, framed)
    device = model.load_device
    clean = single_frame(base.process_latent_in(framed.float())).to(device)
    sampling = base.model_sampling
    sigmas = [float(s) for s in comfy.samplers.calculate_sigmas(sampling, scheduler, steps).flip(0) if s > 0]
    denoise = _denoiser(base, empty)
    step = progress(2 * len(sigmas))
    trajectory = invert(denoise, clean, sigmas, float(sampling.sigma_min), process_of(sampling), step)
    back = reconstruct(denoise, trajectory, lambda done, total: step(total + done, 2 * total))
    kept = trajectory.on("cpu")
    reference = Reference(kept, clean.cpu(), prompt, empty, backbone.family, subject, psnr(back, clean))
    return reference, {"samples": base.process_latent_out(with_frame(back.float(), framed)).cpu()}


def _denoiser(base: Any, conditioning: Conditioning):
    return lambda x, sigma: ode_derivative(base, conditioning, x, sigma)


def prepare_or_pass(model, reference: Reference | ReferenceSet | None, mask: MaskSettings | None,
                    options: FeatureOptions) -> Reference | ReferenceSet | None:
    """:func:`prepare_features`; without a reference or a mask the reference as it is, with a note."""
    if reference is None:
        not_connected("reference", "Invert Reference (DreamMatcher) or another node in front", "no features are made")
    elif mask is None:
        not_connected("mask", "Mask (DreamMatcher)", UNNAMED.format("no features are made"))
    else:
        return prepare_features(model, reference, mask, options)
    return reference


def combine_or_pass(first: Reference | ReferenceSet | None, second: Reference | ReferenceSet | None,
                    **options) -> ReferenceSet | None:
    """:func:`combined`; where one is not connected the other alone, with a note, and nothing where none is."""
    missing = [name for name, given in (("reference_1", first), ("reference_2", second)) if given is None]
    if missing:
        outcome = "the other is taken alone" if len(missing) == 1 else "there is none to match"
        not_connected(" and ".join(missing), "the node in front", outcome)
    return combined(first, second, **options) if len(missing) < 2 else None


def prepare_features(model, reference: Reference | ReferenceSet, mask: MaskSettings | None,
                     options: FeatureOptions) -> Reference | ReferenceSet:
    """The reference, or the set, with features made ahead of sampling, which then never runs the reference again.

    They are made at the inversion's sigmas, or at some of them as the options say; a sampler that visits other sigmas uses
    the nearest. Raises ValueError for a reference of another family.
    """
    members = members_in_use(reference, mask, tell)
    sigmas = [options.chosen(member.reference.trajectory.sigmas) for member, _ in members]
    step = progress(sum(map(len, sigmas)))
    total, ready = 0, []
    for (member, subject), chosen in zip(members, sigmas):
        prepared = _prepared(model, member.reference, subject, options, chosen, step, total)
        if mask is not None and mask.carried and subject is not None and member.mask is None and mask.reference_mask is None:
            foreground_of(model.model, backbone_of(model.model), prepared, subject, prepared.store, network_identity(model),
                          model.load_device)
        ready.append(replace(member, reference=prepared))
        total += len(chosen)
    return ReferenceSet(tuple(ready)) if isinstance(reference, ReferenceSet) else ready[0].reference


def _prepared(model, reference: Reference, subject: Subject | None, options: FeatureOptions,
              sigmas: tuple[float, ...], step: Callable[[int, int], None], before: int) -> Reference:
    backbone = backbone_of(model.model)
    check_family(reference, backbone.family, model.model.latent_format.latent_channels)
    load(model, reference.latent.unsqueeze(2) if frames(model.model) else reference.latent)
    network, sites = network_identity(model), frozenset(backbone.chosen(options.layers))
    store = FeatureStore(options, sigmas=sigmas)
    for done, sigma in enumerate(sigmas, 1):
        for kind in (COND, UNCOND) if options.both_rows else (COND,):
            row = reference_pass(model.model, backbone, reference, kind, subject, sigma, model.load_device, sites)
            store.put(FeatureKey(network, kind, sigma, subject, sites), row, room=1 << 62)
        step(before + done, 0)
    store.capacity = 2 * store.held  # room for those of one other state of the network
    return reference.with_store(store)
