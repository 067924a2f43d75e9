"""The foreground of a reference that nobody painted: found once, at several noise levels, and kept with its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...backbones.base import Backbone, Grid, Site
from ...matching.features import FeatureStore
from ...matching.foreground import subject_cells
from ...matching.reference import Reference
from ...sizes import spatial_size
from ...subject import Subject
from ..graph.notes import tell
from ..model.backbone import network_of
from ..model.capture import SubjectMaps
from ..model.patch_points import Points
from .reference_pass import Recorded, record

UNSEEN = ("model: none of its blocks that tell where the subject's words are could be looked into; another pack runs this model "
          "in a way of its own. Load it with ComfyUI's own loader, or paint a reference_mask")
#: shares of the inversion's noise levels, from the lowest
LEVELS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, eq=False)
class Foreground:
    """A reference's foreground, in a form that a feature store keeps."""

    cells: torch.Tensor  # [1, 1, H, W], the subject's above one half

    def bytes(self) -> int:
        return self.cells.numel() * self.cells.element_size()


def foreground_of(base: Any, backbone: Backbone, reference: Reference, subject: Subject, store: FeatureStore,
                  network: str, device: torch.device) -> torch.Tensor:
    """The foreground [1, 1, H, W] of a reference at the grid of its finest matched site, from its ``store`` if it is there.

    ``network`` is the identity of what the network computes: with another LoRA it may see something else.
    """
    key = (network, "foreground", subject)
    kept = store.find(key)
    if kept is None:
        kept = Foreground(find_foreground(base, backbone, reference, subject, device))
        store.keep(key, kept)
    if not bool((kept.cells > 0.5).any()):
        tell(f"reference: {subject.words!r} is not found in the reference, so nothing of it is matched; give Mask (DreamMatcher) "
             "a reference_mask")
    return kept.cells.to(device)


def find_foreground(base: Any, backbone: Backbone, reference: Reference, subject: Subject, device: torch.device) -> torch.Tensor:
    """The foreground [1, 1, H, W] in main memory, from a pass of the network at each of the levels: the subject's is above one
    half.

    Raises ValueError where another pack keeps the network's blocks from being seen.
    """
    sigmas = reference.trajectory.sigmas
    chosen = dict.fromkeys(sigmas[round(share * (len(sigmas) - 1))] for share in LEVELS)
    size = spatial_size(reference.latent)
    finest = finest_site(backbone, size)
    maps, features = [], []
    for sigma in chosen:
        seen, hidden = _look(base, backbone, reference, subject, finest, sigma, device)
        maps += [each.float().cpu() for each in seen]  # not every device solves linear systems, and it is done once
        features.append(hidden.float().cpu())
    return subject_cells(maps, features, backbone.grid(finest, size))


def finest_site(backbone: Backbone, size: Grid) -> Site:
    """The last matched site of the finest grid: where a subject's cells differ most from the others."""
    return max(enumerate(backbone.matched), key=lambda entry: (min(backbone.grid(entry[1], size)), entry[0]))[1]


def _look(base: Any, backbone: Backbone, reference: Reference, subject: Subject, finest: Site, sigma: float,
          device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Maps [1, 1, h, w] of all sites whose grid is no coarser than the one that a target's are read at, and the inputs [1, N, C]
    of the finest site."""
    x = reference.trajectory.at(sigma).to(device)
    size = spatial_size(x)
    least = min(min(backbone.grid(site, size)) for site in backbone.map_sites(size))
    sites = tuple(site for site in backbone.readers if min(backbone.grid(site, size)) >= least)
    reader = SubjectMaps(backbone.prompt_attention(network_of(base), sites), backbone, subject)
    seen: dict[Site, torch.Tensor] = {}
    hidden: dict[Site, torch.Tensor] = {}

    def end_with_the_last() -> None:
        if hidden and len(seen) == len(sites):
            raise Recorded

    def keep_hidden(site, n, context, value, extra):
        if site == finest:
            hidden[site] = value.clone()
            end_with_the_last()
        return n, context, value

    def keep_map(site, n, context, value, extra):
        if site in reader.modules and (subject_map := reader.read(site, n, context, value, size)) is not None:
            seen[site] = subject_map
            end_with_the_last()
        return n, context, value

    record(base, reference.positive, x, sigma, Points(prompt=keep_map, values=keep_hidden))
    if not seen or not hidden:
        raise ValueError(UNSEEN)
    return list(seen.values()), hidden[finest]
