"""Descriptors from decoder features (DreamMatcher, Sec. 4.2): one vector per position, comparable between images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from ..sizes import spatial_size

#: rank of the paper's PCA, per scale
PAPER_PCA = 256
POWER_ITERATIONS = 2


def descriptors(
    reference_scales: list[torch.Tensor],
    target_scales: list[torch.Tensor],
    *,
    pca: int | None = PAPER_PCA,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference and target descriptors, ``[B, D, H, W]`` each, at the size of the finest scale.

    ``*_levels`` are decoder features ``[B, C_l, H_l, W_l]`` in matching order, coarse to fine; a reference batch of one
    serves every target. Each scale is resized (bilinear, corners aligned), centred on the mean of both images and, with
    ``pca``, projected on that many joint principal directions; scales are joined finest first and L2-normalised.
    ``pca=None`` keeps the centred features: no projection, no cost. The projection is the same on every call.

    Raises ValueError when the scales do not pair up or ``pca`` is not positive.
    """
    (reference,), target = joint_descriptors([reference_scales], target_scales, pca=pca)
    return reference, target


def joint_descriptors(
    references: list[list[torch.Tensor]],
    target_scales: list[torch.Tensor],
    *,
    pca: int | None = PAPER_PCA,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """:func:`descriptors` of several references and one target, comparable among all: one mean, one projection."""
    for scales in references:
        if len(scales) != len(target_scales) or not target_scales:
            raise ValueError(f"{len(scales)} reference levels do not pair with {len(target_scales)} target levels")
    if pca is not None and pca < 1:
        raise ValueError(f"pca: {pca} is not a positive rank; use None for no projection")
    batch = target_scales[0].shape[0]
    images = [*references, target_scales]
    sizes = [spatial_size(scales[-1]) for scales in images]
    for number, scale in enumerate(target_scales):
        for scales in references:
            if scales[number].shape[1] != scale.shape[1]:
                raise ValueError(f"reference level has {scales[number].shape[1]} channels, target level {scale.shape[1]}")
    positions = sum(height * width for height, width in sizes)
    channels = [scale.shape[1] for scale in reversed(target_scales)]
    widths = channels if pca is None else [min(pca, count, positions) for count in channels]
    joined = [target_scales[0].new_empty(batch, height * width, sum(widths), dtype=torch.float32) for height, width in sizes]
    places = [side.split(widths, -1) for side in joined]  # filled scale by scale: at full size, copies are what costs memory
    for place, number in enumerate(reversed(range(len(target_scales)))):
        tokens = [_tokens(scales[number], size).expand(batch, -1, -1) for scales, size in zip(images, sizes)]
        _project(tokens, pca, [side[place] for side in places])
    for side in joined:
        side /= side.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    *sources, target = (rearrange(side, "b (h w) c -> b c h w", h=height) for side, (height, _) in zip(joined, sizes))
    return sources, target


def _tokens(scale: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A feature map [B, C, h, w] resized to ``size``, as tokens [B, N, C] in float32."""
    scale = scale.float()
    if tuple(scale.shape[-2:]) != tuple(size):
        scale = F.interpolate(scale, size=size, mode="bilinear", align_corners=True)
    return rearrange(scale, "b c h w -> b (h w) c")


def _project(tokens: list[torch.Tensor], pca: int | None, places: list[torch.Tensor]) -> None:
    """Centres images [B, N_i, C] on their joint mean and projects all on their joint principal directions, into ``places``."""
    mean = sum(part.sum(1, keepdim=True) for part in tokens) / sum(part.shape[1] for part in tokens)
    if pca is None:
        for part, place in zip(tokens, places):
            torch.sub(part, mean, out=place)
        return
    together = torch.cat(tokens, 1) - mean
    for number, row in enumerate(together):
        projected = (row @ principal_directions(row, places[0].shape[-1])).split([part.shape[1] for part in tokens])
        for part, place in zip(projected, places):
            place[number] = part


def principal_directions(centred: torch.Tensor, rank: int) -> torch.Tensor:
    """Leading right singular vectors [C, rank] of ``centred`` [N, C] (Halko et al. 2011, Alg. 4.4 and 5.1).

    What ``torch.pca_lowrank`` does with its two power iterations, but from random numbers of its own: that function draws
    from the global state, from which samplers draw their noise. A broken picture (NaN, infinity) counts as zeros here, so
    that it ends as the host's own would.
    """
    centred = torch.nan_to_num(centred)
    random = torch.randn(centred.shape[1], rank, generator=torch.Generator().manual_seed(0)).to(centred)
    basis = torch.linalg.qr(centred @ random).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(centred.T @ basis).Q
        basis = torch.linalg.qr(centred @ basis).Q
    return torch.linalg.svd(basis.T @ centred, full_matrices=False).Vh.T


def resize(descriptor: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Descriptors at an attention layer's grid (bilinear, corners not aligned, as in the official code)."""
    if tuple(descriptor.shape[-2:]) == tuple(size):
        return descriptor
    return F.interpolate(descriptor, size=size, mode="bilinear", align_corners=False)
