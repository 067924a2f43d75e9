"""Descriptors from decoder features (DreamMatcher, Sec. 4.2): one vector per position, comparable between images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

#: rank of the paper's PCA, per level
PAPER_PCA = 256


def descriptors(
    reference_levels: list[torch.Tensor],
    target_levels: list[torch.Tensor],
    *,
    pca: int | None = PAPER_PCA,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference and target descriptors, ``[B, D, H, W]`` each, at the size of the finest level.

    ``*_levels`` are decoder features ``[B, C_l, H_l, W_l]`` in matching order, coarse to fine; a reference batch of one
    serves every target. Each level is resized (bilinear, corners aligned), centred on the mean of both images and, with
    ``pca``, projected on that many joint principal directions; levels are joined finest first and L2-normalised.
    ``pca=None`` keeps the centred features: no projection, no cost. The projection is the same on every call.

    Raises ValueError when the levels do not pair up or ``pca`` is not positive.
    """
    if len(reference_levels) != len(target_levels) or not target_levels:
        raise ValueError(f"{len(reference_levels)} reference levels do not pair with {len(target_levels)} target levels")
    if pca is not None and pca < 1:
        raise ValueError(f"pca: {pca} is not a positive rank; use None for no projection")
    batch = target_levels[0].shape[0]
    sizes = tuple(levels[-1].shape[-2:] for levels in (reference_levels, target_levels))
    joined: tuple[list, list] = ([], [])
    for reference, target in zip(reversed(reference_levels), reversed(target_levels)):
        if reference.shape[1] != target.shape[1]:
            raise ValueError(f"reference level has {reference.shape[1]} channels, target level {target.shape[1]}")
        pair = [_tokens(level, size).expand(batch, -1, -1)
                for level, size in zip((reference, target), sizes)]
        for side, tokens in zip(joined, _project(*pair, pca)):
            side.append(tokens)
    return tuple(
        rearrange(F.normalize(torch.cat(side, -1), dim=-1), "b (h w) c -> b c h w", h=height)
        for side, (height, _) in zip(joined, sizes)
    )


def _tokens(level: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, C, h, w] at ``size``, as [B, N, C] float32."""
    level = level.float()
    if tuple(level.shape[-2:]) != tuple(size):
        level = F.interpolate(level, size=size, mode="bilinear", align_corners=True)
    return rearrange(level, "b c h w -> b (h w) c")


def _project(reference: torch.Tensor, target: torch.Tensor, pca: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres [B, N, C] and [B, M, C] on their joint mean and projects both on their joint principal directions."""
    both = torch.cat((reference, target), 1)
    both = both - both.mean(1, keepdim=True)
    if pca is not None:
        rank = min(pca, *both.shape[1:])
        both = torch.stack([row @ principal_directions(row, rank) for row in both])
    return both[:, : reference.shape[1]], both[:, reference.shape[1]:]


def principal_directions(centred: torch.Tensor, rank: int) -> torch.Tensor:
    """Leading right singular vectors [C, rank] of ``centred`` [N, C], by torch's randomised method with a fixed seed.

    The global random state is left as it was: samplers draw their noise from it.
    """
    devices = [centred.device] if centred.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return torch.pca_lowrank(centred, q=rank, center=False)[2]


def resize(descriptor: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Descriptors at an attention layer's grid (bilinear, corners not aligned, as in the official code)."""
    if tuple(descriptor.shape[-2:]) == tuple(size):
        return descriptor
    return F.interpolate(descriptor, size=size, mode="bilinear", align_corners=False)
