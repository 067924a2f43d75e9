"""Visible faults that a mean of colours hides: a halo around the subject, and parts of a colour that neither picture has."""

from __future__ import annotations

import numpy as np

from .colour import difference, lab
from .judge import NAMED, part_colours

#: the ring around a subject in which a halo is looked for, in pixels from either silhouette
RING = 2, 14
#: CIEDE2000 from which a pixel of the ring counts as changed
CHANGED = 8.0
#: fates of a part whose colour should change
REFERENCE, PLAIN, OTHER, THIRD = "reference's colour", "plain's colour", "another part's colour", "third colour"


def halo(picture: np.ndarray, parts: np.ndarray, plain: np.ndarray, plain_parts: np.ndarray) -> float | None:
    """Share of the pixels around the subject that differ visibly from the plain picture's.

    The ring lies 2 to 14 pixels outside of both silhouettes; CIEDE2000 above 8 is visible. Pictures are uint8 [H, W, 3],
    parts numbers of PART_LABELS [H, W]. None without a subject, and where it leaves no ring.
    """
    from skimage.morphology import dilation, disk

    both = (parts > 0) | (plain_parts > 0)
    inner, outer = (dilation(both, disk(radius)) for radius in RING)
    ring = outer & ~inner
    if not ring.any() or not both.any():
        return None
    distance = difference(lab(picture[ring]), lab(plain[ring]))
    return float((distance > CHANGED).mean())


def fates(picture: np.ndarray, parts: np.ndarray, plain: np.ndarray, plain_parts: np.ndarray, reference: np.ndarray,
          reference_parts: np.ndarray, kind: str) -> dict[str, float]:
    """Shares of the parts whose colour should change, by the colour that they have in the end.

    A part should change where reference and plain picture differ by CIEDE2000 15 or more. Within 15 of a colour it counts as it:
    the reference's, else plain's, else that of another part of the reference, else a third one. Empty where none should.
    """
    def colours(image: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        medians = {name: median for name, (median, _) in part_colours(image, labels, kind).items()}
        return {name: lab(median) for name, median in medians.items()}

    here, before, there = colours(picture, parts), colours(plain, plain_parts), colours(reference, reference_parts)

    def alike(one: np.ndarray, other: np.ndarray) -> bool:
        return float(difference(one, other)) < NAMED

    def fate(name: str) -> str:
        if alike(here[name], there[name]):
            return REFERENCE
        if alike(here[name], before[name]):
            return PLAIN
        return OTHER if any(alike(here[name], colour) for part, colour in there.items() if part != name) else THIRD

    changing = [fate(name) for name in here if name in before and name in there and not alike(there[name], before[name])]
    return {name: changing.count(name) / len(changing) for name in (REFERENCE, PLAIN, OTHER, THIRD)} if changing else {}
