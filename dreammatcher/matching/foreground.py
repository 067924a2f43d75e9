"""The foreground of a reference, and of the target to which the match carries it over. Not in the paper.

A target's own attention to the subject's words is the weakest part of the method: thin parts are missing in it. Whether the
match of a cell lies on the reference's subject is known better, as long as the reference's foreground is good: a painted mask, or
one that is made once, at several noise levels, by the features that belong together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange

from ..attention import normalise, otsu
from ..sizes import spatial_size
from .correspondence import JointMatch

#: strength of the ridge regression, per cell
RIDGE = 0.012
#: numbers of a cell from which the regression is solved between the cells, where those are fewer
WIDE = 4096
#: share that the attention keeps in each round's goal, and the number of rounds
KEPT, ROUNDS = 0.7, 5
#: score from which a cell counts as the subject's. Under one half: a missing thin part costs more than a cell of its edge
SUBJECT = 0.45
#: share of a cell that a painted mask must cover, for the same reason
COVERED = 0.2
#: what the cycle test takes for the subject's share of the picture when the foreground is carried over: at the default threshold
#: of 0.4 a match may then miss by a side of the picture, since the foreground says already what belongs to the subject
WHOLE = 2.5


def mean_of_grids(maps: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """The mean [1, 1, *size] of attention maps [1, 1, h, w], each from 0 to 1, in which every grid has the same weight."""
    grids: dict[tuple[int, int], list[torch.Tensor]] = {}
    for each in maps:
        grids.setdefault(spatial_size(each), []).append(normalise(each.float()))
    means = [torch.stack(same).mean(0) for same in grids.values()]
    return torch.stack([F.interpolate(mean, size=size, mode="bilinear", align_corners=False) for mean in means]).mean(0)


def leaning(soft: torch.Tensor) -> torch.Tensor:
    """A soft map [1, 1, H, W] in 0..1 as -1 to 1, with Otsu's threshold at 0. All -1 where it has no contrast."""
    above = otsu(soft) > 0
    if not bool(above.any()):
        return torch.full_like(soft, -1.0)
    bar = (soft[~above].max() + soft[above].min()) / 2
    return torch.where(soft < bar, soft / bar - 1, (soft - bar) / (1 - bar).clamp_min(torch.finfo(soft.dtype).tiny))


def joined(features: list[torch.Tensor]) -> torch.Tensor:
    """Features [1, N, C] of several noise levels as one vector per cell, [N, D] with a mean squared length of 1."""
    centred = [each[0].float() - each[0].float().mean(0) for each in features]
    scaled = [each / each.square().sum(1).mean().sqrt().clamp_min(torch.finfo(each.dtype).tiny) for each in centred]
    return torch.cat(scaled, 1) / len(scaled) ** 0.5


def regression(vectors: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Ridge regression on ``vectors`` [N, D]: from the values [N] that are learned to those [N] that it gives them.

    The widest features, which are transformers', have their system solved between the cells: the same answer with less memory.
    """
    between_cells = vectors.shape[1] > max(WIDE, len(vectors))
    products = vectors @ vectors.T if between_cells else vectors.T @ vectors
    factor = torch.linalg.cholesky(products + RIDGE * len(vectors) * torch.eye(len(products), device=vectors.device))
    if between_cells:
        return lambda values: (products @ torch.cholesky_solve(values[:, None], factor))[:, 0]
    return lambda values: vectors @ torch.cholesky_solve(vectors.T @ values[:, None], factor)[:, 0]


def subject_cells(maps: list[torch.Tensor], features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """The reference's foreground [1, 1, *size], 0 to 1: a cell is the subject's above one half.

    ``maps`` [1, 1, h, w] are its attention to the subject's words, at several layers and noise levels; ``features`` [1, N, C]
    with H * W = N are inputs of a self-attention at ``size``. Ridge regression on the features learns what the attention says,
    so that a cell takes the side of its like, and learns anew what it has learned, half way. Empty where the maps have no
    contrast.
    """
    goal = leaning(mean_of_grids(maps, size)).flatten()
    score, target, regress = goal, goal, regression(joined(features))
    for _ in range(ROUNDS):
        mean = target.mean()
        score = regress(target - mean) + mean
        target = torch.lerp(score.sign(), goal, KEPT)
    return rearrange(((score + 1) / 2 + 0.5 - SUBJECT).clamp(0, 1), "(h w) -> 1 1 h w", h=size[0])


def painted_cells(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The foreground of a painted mask [1, 1, H, W] at a reference's finest grid: 1 where enough of a cell is covered, else 0."""
    return (F.interpolate(mask.float(), size=size, mode="area") > COVERED).float()


def at_grid(foreground: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A foreground [1, 1, H, W] at another grid, 0 or 1, [1, 1, *size]."""
    return (F.interpolate(foreground, size=size, mode="area") > 0.5).float()


def carried_over(foregrounds: list[torch.Tensor], match: JointMatch) -> torch.Tensor:
    """The target's foreground [B, 1, Ht, Wt]: 1 where the match lies on its reference's foreground [1, 1, Hr, Wr]."""
    return match.pick([torch.take(foreground, each.indices).view(each.similarity.shape)
                       for foreground, each in zip(foregrounds, match.matches)])


def tidied(mask: torch.Tensor) -> torch.Tensor:
    """A hard foreground [B, 1, H, W] without specks and holes: of a cell and its eight neighbours three or more keep it, and six
    fill it."""
    count = F.avg_pool2d(F.pad(mask, (1, 1, 1, 1), mode="replicate"), 3, 1) * 9
    return torch.where(mask > 0, count > 2.5, count > 5.5).to(mask.dtype)


def inside(mask: torch.Tensor) -> torch.Tensor:
    """The least of every cell and its four neighbours, [B, 1, H, W]: what lies at the mask's edge goes. The picture's border
    is no edge."""
    padded = F.pad(mask, (1, 1, 1, 1), mode="replicate")
    around = (padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:])
    return torch.stack((mask, *around)).amin(0)
