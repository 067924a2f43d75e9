"""One pass of the UNet over the reference, and what is recorded in it (Sec. 4.1)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ...attention import foreground
from ...backbones.unet import COND, Layer, Structure
from ...finite import REMEDY, finite
from ...matching.features import RowFeatures
from ...matching.reference import Reference
from ...sizes import spatial_size
from ...subject import Subject
from ..model.capture import SubjectMaps, layer_of, ode_derivative
from ..model.compiling import uncompiled


class _Recorded(BaseException):
    """Everything that is wanted of a pass is there. No error, so nobody's ``except Exception`` is to catch it."""


def reference_pass(
    base: Any, structure: Structure, reference: Reference, kind: str, subject: Subject | None,
    sigma: float, device: torch.device,
) -> RowFeatures:
    """Runs the UNet on the reference at ``sigma`` with its own prompt and nobody else's patches.

    ``kind`` picks the positive or the negative prompt. Only the cond row has a subject map. The pass ends as soon as the last
    of all this is recorded: mostly in front of the last self-attention. Raises ValueError when it holds NaN or infinity.
    """
    x = reference.trajectory.at(sigma).to(device)
    size = spatial_size(x)
    maps = SubjectMaps.of(base, structure, subject, size) if kind == COND and subject else None
    levels: dict[int, torch.Tensor] = {}
    hidden: dict[Layer, torch.Tensor] = {}
    subject_maps: list[torch.Tensor] = []
    wanted_maps = len(maps.modules) if maps else 0

    def end_with_the_last() -> None:
        wanted = (len(structure.self_attention), len(structure.taps), wanted_maps)
        if (len(hidden), len(levels), len(subject_maps)) == wanted:
            raise _Recorded

    def keep_hidden(n, context, value, extra):
        if layer_of(extra) in structure.self_attention:
            hidden[layer_of(extra)] = n.clone()
            end_with_the_last()
        return n, context, value

    def keep_map(n, context, value, extra):
        layer = layer_of(extra)
        if maps and layer in maps.modules and (found := maps.read(layer, n, context, size)) is not None:
            subject_maps.append(found)
            end_with_the_last()
        return n, context, value

    def keep_level(h, skip, options):
        if options["block"][1] in structure.taps:
            levels[options["block"][1]] = h.clone()
        return h, skip

    patches = {"attn1_patch": [keep_hidden], "attn2_patch": [keep_map], "output_block_patch": [keep_level]}
    with contextlib.suppress(_Recorded), uncompiled():  # dynamo gives up on frames that an exception passes
        ode_derivative(base, reference.positive if kind == COND else reference.negative, x, sigma, patches)
    if not all(map(finite, levels.values())):
        raise ValueError(f"model: what it makes of the reference at sigma {sigma:.3g} holds NaN or infinity; {REMEDY}")
    mask = foreground(subject_maps, spatial_size(subject_maps[0])) if subject_maps else None
    return RowFeatures(tuple(levels[number] for number in structure.taps), hidden, mask)
