"""Measures of how far a picture keeps the layout of another: parts, silhouette, edges, background.

The judge reads parts partly by their colours, so part overlap falls when colours change and no line moves; ``recoloured`` makes
the picture that shows by how much.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from .draw import OUTLINE, render
from .judge import part_colours
from .shapes import PART_LABELS
from .world import face, random_pose, random_scene, random_subject

#: pixels around the subject that belong neither to it nor to the background: outline and blur
MARGIN = 2


def structure_iou(parts: np.ndarray, other: np.ndarray) -> float | None:
    """Mean overlap of the part maps over all parts that either picture shows; None when neither shows a subject."""
    labels = [label for label in np.union1d(np.unique(parts), np.unique(other)) if label]
    if not labels:
        return None
    return float(np.mean([((parts == label) & (other == label)).sum() / ((parts == label) | (other == label)).sum()
                          for label in labels]))


def silhouette_iou(parts: np.ndarray, other: np.ndarray) -> float | None:
    """Overlap of the two subjects, whatever their parts; None when neither picture shows one."""
    either = ((parts > 0) | (other > 0)).sum()
    return float(((parts > 0) & (other > 0)).sum() / either) if either else None


def edge_overlap(picture: np.ndarray, other: np.ndarray) -> float | None:
    """F-measure of Canny's edges, where an edge counts as found when the other picture has one within a pixel.

    Pictures uint8 [H, W, 3]. None when neither has an edge.
    """
    from skimage.color import rgb2gray
    from skimage.feature import canny
    from skimage.morphology import dilation

    one, two = (canny(rgb2gray(side), sigma=1.0) for side in (picture, other))
    if not one.any() and not two.any():
        return None
    overlaps = [float((edges & dilation(there, np.ones((3, 3), bool))).sum() / max(edges.sum(), 1))
                for edges, there in ((one, two), (two, one))]
    return 2 * overlaps[0] * overlaps[1] / sum(overlaps) if sum(overlaps) else 0.0


def background_change(picture: np.ndarray, parts: np.ndarray, other: np.ndarray, other_parts: np.ndarray) -> float | None:
    """Mean absolute difference (0..255) where neither picture shows its subject; None when there is no such place."""
    from skimage.morphology import dilation

    subject = dilation((parts > 0) | (other_parts > 0), np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), bool))
    if subject.all():
        return None
    return float(np.abs(picture[~subject].astype(float) - other[~subject]).mean())


def recoloured(picture: np.ndarray, parts: np.ndarray, reference: np.ndarray, reference_parts: np.ndarray,
               kind: str) -> np.ndarray:
    """``picture`` with the colours of the reference's parts and every line where it was: what a perfect match would make.

    A part's pixels are moved by the difference of the two medians, except where they are nearer to the outline's colour.
    """
    here, there = part_colours(picture, parts, kind), part_colours(reference, reference_parts, kind)
    pixels = picture.astype(float)
    for part in here.keys() & there.keys():
        inside = parts == PART_LABELS.index(f"{kind}/{part}")
        colour = here[part][0]
        inside &= np.linalg.norm(picture - colour, axis=-1) <= np.linalg.norm(picture - np.array(OUTLINE, float), axis=-1)
        pixels[inside] += there[part][0] - colour
    return pixels.clip(0, 255).round().astype(np.uint8)


def offsets(parts: np.ndarray, kind: str) -> dict[str, float]:
    """Offset of each part to the right of the middle of all parts' middles, in widths of the subject."""
    columns, middles = np.nonzero(parts)[1], {}
    for label in np.unique(parts):
        name = PART_LABELS[label]
        if name.startswith(f"{kind}/"):
            middles[name] = np.nonzero(parts == label)[1].mean()
    whole = np.mean(list(middles.values())) if middles else 0.0
    return {name: float((middle - whole) / max(1, np.ptp(columns))) for name, middle in middles.items()}


@cache
def facing_weights(kind: str, renders: int = 60) -> dict[str, float]:
    """The weight of each part's offset: mean over variance of subjects of a class that face right.

    That is the best weight for independent normal distributions.
    """
    rng = random.Random(f"facing-{kind}")
    offsets_of: dict[str, list[float]] = {}
    for _ in range(renders):
        _, parts = render(random_subject(rng, kind), face(random_pose(rng), "right"), random_scene(rng))
        for name, value in offsets(parts, kind).items():
            offsets_of.setdefault(name, []).append(value)
    return {name: float(np.mean(values) / (np.var(values) + 1e-4)) for name, values in offsets_of.items()}


def facing_of(parts: np.ndarray, kind: str) -> str | None:
    """The side that a subject faces, "left" or "right", by where its parts lie. None when the picture shows none of its class."""
    offset_of, weights = offsets(parts, kind), facing_weights(kind)
    if not offset_of:
        return None
    return "right" if sum(value * weights[name] for name, value in offset_of.items() if name in weights) >= 0 else "left"
