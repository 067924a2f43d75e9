"""Semantic correspondence between a reference and a target (DreamMatcher, Sec. 4.2 and 4.3; Eq. 5-8).

Grids: ``[B, C, H, W]``; positions and flows are in cells, x first. A flow lives on one image's grid and points into the
other's: the sampled position is ``own position + flow``. Reference and target may have different sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import rearrange

from ..sizes import spatial_size

#: side of the blocks in which the similarity matrix is computed: 16 MB in float32
DEFAULT_TILE = 2048


@dataclass(frozen=True, eq=False)
class Match:
    """Best match of every position, in both directions. What follows from it is made once, when it is first asked for."""

    indices: torch.Tensor  # int64 [B, Ht * Wt], the reference position of every target position, row by row
    reverse_indices: torch.Tensor  # int64 [B, Hr * Wr], the target position of every reference position
    similarity: torch.Tensor  # [B, 1, Ht, Wt], cosine of the best match, -1..1
    reference_size: tuple[int, int]  # (Hr, Wr)

    @property
    def target_size(self) -> tuple[int, int]:
        """(Ht, Wt)."""
        return spatial_size(self.similarity)

    @cached_property
    def flow(self) -> torch.Tensor:
        """Flow [B, 2, Ht, Wt], target -> reference: reference cells minus target cells."""
        return _flow(self.indices, self.target_size, self.reference_size)

    @cached_property
    def reverse_flow(self) -> torch.Tensor:
        """Reverse flow [B, 2, Hr, Wr], reference -> target."""
        return _flow(self.reverse_indices, self.reference_size, self.target_size)

    @cached_property
    def cycle_error(self) -> torch.Tensor:
        """Distance in target cells between a position and where the way there and back ends (Eq. 8): [B, 1, Ht, Wt].

        Follows the official code; the paper's Eq. 8 omits the forward flow.
        """
        ends = self.reverse_indices.gather(1, self.indices)
        return _flow(ends, self.target_size, self.target_size).norm(dim=1, keepdim=True)


def grid_of(x: torch.Tensor) -> torch.Tensor:
    """Cell coordinates of ``x`` [..., H, W]: [1, 2, H, W], x then y."""
    height, width = x.shape[-2:]
    ys, xs = torch.meshgrid(torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij")
    return torch.stack((xs, ys))[None].float()


def match(
    reference: torch.Tensor,
    target: torch.Tensor,
    *,
    tile: int | None = None,
    reference_mask: torch.Tensor | None = None,
    unit: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Match:
    """Cosine nearest neighbours in both directions (Eq. 5 and its reverse).

    ``reference`` [B, C, Hr, Wr] and ``target`` [B, C, Ht, Wt] are descriptors; a batch of one reference serves every
    target. The similarity matrix is only ever held in ``tile`` x ``tile`` blocks. ``reference_mask`` [B|1, 1, Hr, Wr]
    keeps the match to reference positions where it is above one half. ``unit`` says that both are float32 unit vectors
    already, which saves a copy. ``dtype`` is the precision of the cosines: float16 is faster on a GPU, and what it chooses
    is as near but for rounding. Of equal candidates the first, row by row, wins.

    Raises ValueError when channels or batches do not agree, or the mask leaves nothing to match.
    """
    _check(reference, target)
    batch, _, height, width = target.shape
    reference = reference.expand(batch, -1, -1, -1)
    sources, queries = (rearrange(x, "b c h w -> b (h w) c") for x in (reference, target))
    if not unit:
        sources, queries = (F.normalize(x.float(), dim=-1) for x in (sources, queries))
    sources, queries = sources.to(dtype), queries.to(dtype)
    allowed = _allowed(reference_mask, reference)

    step = tile or DEFAULT_TILE
    best_value = queries.new_full(queries.shape[:2], -torch.inf)
    best_index = torch.zeros(queries.shape[:2], dtype=torch.long, device=queries.device)
    back_value = sources.new_full(sources.shape[:2], -torch.inf)
    back_index = torch.zeros(sources.shape[:2], dtype=torch.long, device=sources.device)
    for q in range(0, queries.shape[1], step):
        rows = slice(q, q + step)
        for s in range(0, sources.shape[1], step):
            columns = slice(s, s + step)
            similarity = queries[:, rows] @ sources[:, columns].transpose(1, 2)
            _keep_better(back_value[:, columns], back_index[:, columns], similarity, dim=1, offset=q)
            if allowed is not None:
                similarity = similarity.masked_fill(~allowed[:, None, columns], -torch.inf)
            _keep_better(best_value[:, rows], best_index[:, rows], similarity, dim=2, offset=s)

    similarity = rearrange(best_value.float(), "b (h w) -> b 1 h w", h=height, w=width)
    return Match(best_index, back_index, similarity, spatial_size(reference))


def _check(reference: torch.Tensor, target: torch.Tensor) -> None:
    if reference.ndim != 4 or target.ndim != 4:
        raise ValueError(f"descriptors must be [B, C, H, W]; got {tuple(reference.shape)} and {tuple(target.shape)}")
    if reference.shape[1] != target.shape[1]:
        raise ValueError(f"reference descriptors have {reference.shape[1]} channels, target descriptors have "
                         f"{target.shape[1]}; make both from the same layers and the same pca")
    if reference.shape[0] not in (1, target.shape[0]):
        raise ValueError(f"{reference.shape[0]} references cannot serve {target.shape[0]} targets; give one or as many")
    if 0 in reference.shape or 0 in target.shape:
        raise ValueError(f"nothing to match in {tuple(reference.shape)} and {tuple(target.shape)}")


def _allowed(mask: torch.Tensor | None, reference: torch.Tensor) -> torch.Tensor | None:
    if mask is None:
        return None
    inside = rearrange(mask > 0.5, "b 1 h w -> b (h w)").expand(reference.shape[0], -1)
    if inside.shape[1] != reference.shape[2] * reference.shape[3]:
        raise ValueError(f"reference_mask is {tuple(mask.shape[-2:])}, the reference is {tuple(reference.shape[-2:])}")
    return inside


def _keep_better(value: torch.Tensor, index: torch.Tensor, similarity: torch.Tensor, dim: int, offset: int) -> None:
    """Updates running maxima in place with one block; an earlier equal candidate stays."""
    block_value, block_index = similarity.max(dim=dim)
    better = block_value > value
    value.copy_(torch.where(better, block_value, value))
    index.copy_(torch.where(better, block_index + offset, index))


def _flow(indices: torch.Tensor, size: tuple[int, int], other: tuple[int, int]) -> torch.Tensor:
    """Positions ``indices`` [B, N] on a grid of size ``other``, relative to the grid ``size`` of N cells: [B, 2, *size]."""
    positions = torch.stack((indices % other[1], indices // other[1]), 1).float().unflatten(2, size)
    return positions - grid_of(positions)


def warp(x: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """W(x; F) of Eq. 6: bilinear samples of ``x`` [B|1, C, H, W] at ``own position + flow`` -> [B, C, *flow's size].

    Pixel centres are the corners of the grid (align_corners=True), zero outside.
    """
    height, width = x.shape[-2:]
    columns, rows = (flow + grid_of(flow)).unbind(1)
    positions = torch.stack((columns / max(width - 1, 1), rows / max(height - 1, 1)), -1)
    return F.grid_sample(x.expand(flow.shape[0], -1, -1, -1), (positions * 2 - 1).to(x.dtype), align_corners=True)


def take(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """:func:`warp` for matched positions, exact: rows ``indices`` [B, N] of ``tokens`` [B|1, M, C] -> [B, N, C]."""
    if tokens.shape[0] == 1:
        return F.embedding(indices, tokens[0])
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


@dataclass(frozen=True, eq=False)
class JointMatch:
    """Matches of one target with several references: every target position belongs to its most similar reference."""

    matches: tuple[Match, ...]
    best: torch.Tensor | None  # int64 [B, 1, Ht, Wt], number of the reference; None with only one

    @staticmethod
    def of(matches: list[Match]) -> JointMatch:
        if len(matches) == 1:
            return JointMatch(tuple(matches), None)
        return JointMatch(tuple(matches), torch.cat([m.similarity for m in matches], 1).argmax(1, keepdim=True))

    @property
    def size(self) -> int:
        """Number of pictures in the batch."""
        return self.matches[0].similarity.shape[0]

    def pick(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Picks, at every position, the value [B|1, C, Ht, Wt] of its own reference."""
        picked = values[0]
        if self.best is None:
            return picked
        for number, value in enumerate(values[1:], 1):
            picked = torch.where(self.best == number, value, picked)
        return picked

    @cached_property
    def indices(self) -> torch.Tensor:
        """Positions in the references' tokens laid end to end. int64 [B, Ht * Wt]."""
        offset, indices = 0, []
        for match in self.matches:
            indices.append((match.indices + offset if offset else match.indices).view(match.similarity.shape))
            offset += match.reference_size[0] * match.reference_size[1]
        return self.pick(indices).flatten(1)

    def confidence(self, mask: torch.Tensor, threshold: float, least: float) -> torch.Tensor:
        """:func:`confidence` of each position in its own reference, [B, 1, Ht, Wt]."""
        return self.pick([confidence(match, mask, threshold, least) for match in self.matches])

    def warp(self, pictures: list[torch.Tensor]) -> torch.Tensor:
        """:func:`warp` of one picture [1|B, C, Hr, Wr] per reference, [B, C, Ht, Wt]."""
        return self.pick([warp(x, match.flow) for x, match in zip(pictures, self.matches)])


def confidence(match: Match, mask: torch.Tensor, threshold: float = 0.4, least: float = 0.0) -> torch.Tensor:
    """U of Eq. 8: 1 where the cycle error is below ``threshold`` x side x mean(mask), else 0. [B, 1, Ht, Wt].

    ``mask`` [B|1, 1, Ht, Wt] is the target foreground, soft or hard: the larger the subject, the more slack, but never less than
    ``least`` cells (not in the paper). The side of a non-square grid is the square root of its area.

    Raises ValueError when ``threshold`` is not above 0.
    """
    if not threshold > 0:
        raise ValueError(f"threshold: {threshold} is not above 0; the paper uses 0.4")
    height, width = match.target_size
    slack = threshold * (height * width) ** 0.5 * mask.float().mean((1, 2, 3), keepdim=True)
    return (match.cycle_error < slack.clamp_min(least)).float()
