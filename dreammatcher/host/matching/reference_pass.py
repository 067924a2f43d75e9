"""One pass of the network over the reference, and what is recorded in it (Sec. 4.1)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ...attention import foreground
from ...backbones.base import Backbone, Site, Tap
from ...finite import REMEDY, finite
from ...guidance_rows import COND
from ...matching.features import RowFeatures
from ...matching.reference import Reference
from ...sizes import spatial_size
from ...subject import Conditioning, Subject
from ..model.capture import SubjectMaps, ode_derivative
from ..model.compiling import uncompiled
from ..model.patch_points import Points


class Recorded(BaseException):
    """Everything that is wanted of a pass is there. No error, so nobody's ``except Exception`` is to catch it."""


def record(base: Any, prompt: Conditioning, x: torch.Tensor, sigma: float, points: Points) -> None:
    """A pass of the network over ``x`` [1, C, H, W] that ends where one of the ``points`` raises :class:`Recorded`."""
    with contextlib.suppress(Recorded), uncompiled():  # dynamo gives up on frames that an exception passes
        ode_derivative(base, prompt, x, sigma, points)


def reference_pass(
    base: Any, backbone: Backbone, reference: Reference, kind: str, subject: Subject | None,
    sigma: float, device: torch.device, sites: frozenset[Site],
) -> RowFeatures:
    """Runs the network on the reference at ``sigma`` with its own prompt and nobody else's patches.

    ``kind`` picks the positive or the negative prompt. Only the cond row has a subject map. Hidden inputs are kept of ``sites``
    alone. The pass ends as soon as the last of all this is recorded, mostly in front of the last site. Raises ValueError when it
    holds NaN or infinity.
    """
    x = reference.trajectory.at(sigma).to(device)
    size = spatial_size(x)
    maps = SubjectMaps.of(base, backbone, subject, size) if kind == COND and subject else None
    scales: dict[Tap, torch.Tensor] = {}
    hidden: dict[Site, torch.Tensor] = {}
    subject_maps: list[torch.Tensor] = []
    wanted_maps = len(maps.modules) if maps else 0

    def end_with_the_last() -> None:
        wanted = (len(sites), len(backbone.taps), wanted_maps)
        if (len(hidden), len(scales), len(subject_maps)) == wanted:
            raise Recorded

    def keep_hidden(site, n, context, value, extra):
        if site in sites:
            hidden[site] = value.clone()
            end_with_the_last()
        return n, context, value

    def keep_map(site, n, context, value, extra):
        if maps and site in maps.modules and (subject_map := maps.read(site, n, context, value, size)) is not None:
            subject_maps.append(subject_map)
            end_with_the_last()
        return n, context, value

    def keep_scale(tap, h, options):
        if tap in backbone.taps:
            scales[tap] = h.clone()

    prompt = reference.positive if kind == COND else reference.negative
    record(base, prompt, x, sigma, Points(prompt=keep_map, values=keep_hidden, feature=keep_scale))
    if len(scales) < len(backbone.taps):
        raise ValueError("model: none of its blocks that tell what is where could be looked into; another pack "
                         "runs this model in a way of its own. Load it with ComfyUI's own loader")
    if not all(map(finite, scales.values())):
        raise ValueError(f"model: what it makes of the reference at sigma {sigma:.3g} holds NaN or infinity; {REMEDY}")
    mask = foreground(subject_maps, spatial_size(subject_maps[0])) if subject_maps else None
    return RowFeatures(tuple(scales[tap] for tap in backbone.taps), hidden, mask)
