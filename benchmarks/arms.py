"""What the studies of :mod:`benchmarks.quality` compare: each makes models by name for one prepared case."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from toybox.evaluation import Case

from . import rivals
from .studio import Studio

PLAIN, REPLACED, MATCHED, EVERYWHERE = "plain", "K+V replacement", "DreamMatcher", "DreamMatcher without mask"


def arms(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    settings = studio.module("dreammatcher.matching.settings")
    return {
        PLAIN: studio.model,
        REPLACED: studio.matched(ready, injection=settings.REPLACED),
        MATCHED: studio.matched(ready),
        EVERYWHERE: studio.matched(ready, injection=settings.MATCHED_EVERYWHERE),
    }


def ablations(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """Choices that the specification leaves open."""
    inside = torch.from_numpy(ready.parts > 0).float()[None, None]
    return {
        PLAIN: studio.model,
        MATCHED: studio.matched(ready),
        "reference mask limits the match": studio.matched(ready, {"reference_mask": inside}),
        "soft foreground": studio.matched(ready, {"otsu": False}),
        "no slack beyond the paper's": studio.matched(ready, effort={"least_slack": 0.0}),
        "as the paper divides the work": studio.matched(ready, effort={"pca": 256, "shared": False}),
        "everything as in the paper": studio.matched(
            ready, {"otsu": False}, effort={"pca": 256, "shared": False, "least_slack": 0.0}),
        "start 0.3": studio.matched(ready, start=0.3),
    }


def guidances(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """Matching alone, and led further in both modes."""
    matched = studio.matched(ready)
    return {
        PLAIN: studio.model,
        MATCHED: matched,
        "+ guidance fast 0.5": studio.guided(matched, mode="fast", weight=0.5),
        "+ guidance fast": studio.guided(matched, mode="fast"),
        "+ guidance paper": studio.guided(matched, mode="paper"),
    }


def trades(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """Everything that trades likeness for time or memory, one change from the default each."""
    small = studio.ahead(ready, dtype=torch.float16, pca=64, noise_levels=20)
    coarse, fine = studio.blocks()
    return {
        PLAIN: studio.model,
        "balanced": studio.matched(ready),
        "paper": studio.matched(ready, effort={"pca": 256, "shared": False}),
        "PCA 64": studio.matched(ready, effort={"pca": 64}),
        "match every 2": studio.matched(ready, effort={"every": 2}),
        "match every 4": studio.matched(ready, effort={"every": 4}),
        "coarse level only": studio.matched(ready, layers=coarse),
        "fine level only": studio.matched(ready, layers=fine),
        "small store": studio.matched(small),
        "start 0.3": studio.matched(ready, start=0.3),
        "end 0.7": studio.matched(ready, end=0.7),
        "guidance fast": studio.guided(studio.matched(ready), mode="fast"),
    }


def starts(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """When matching begins, alone and led by guidance."""
    later = {f"start {start}": studio.matched(ready, start=start) for start in (0.2, 0.3, 0.4)}
    return {
        PLAIN: studio.model,
        MATCHED: studio.matched(ready),
        **later,
        "+ guidance fast": studio.guided(studio.matched(ready), mode="fast"),
        "start 0.3, + guidance fast": studio.guided(later["start 0.3"], mode="fast"),
    }


def unnamed(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """The subject named, and taken from the prompts."""
    return {
        PLAIN: studio.model,
        MATCHED: studio.matched(ready),
        "words that both prompts share": studio.matched(ready, studio.named(ready, shared=True)),
        "all content words": studio.matched(ready, studio.named(ready, shared=False)),
    }


def others(studio: Studio, ready: SimpleNamespace) -> dict[str, object]:
    """References that no inversion was made of."""
    matched = studio.matched(ready)
    quick = {scale: studio.ahead(rivals.without_inversion(studio, ready, scale), both_rows=True) for scale in (1.0, 0.7)}
    return {
        PLAIN: studio.model,
        MATCHED: matched,
        "no inversion": studio.matched(quick[1.0]),
        "no inversion, 0.7 of the noise": studio.matched(quick[0.7]),
        "+ guidance fast": studio.guided(matched, mode="fast"),
        "no inversion, + guidance fast": studio.guided(studio.matched(quick[1.0]), mode="fast"),
    }


def pictures_of_others(studio: Studio, ready: SimpleNamespace, case: Case) -> dict[str, np.ndarray]:
    """What is no model with settings: a picture each."""
    return {"diptych": rivals.diptych(studio, ready, case)}


STUDIES = {"arms": arms, "ablations": ablations, "guidance": guidances, "trades": trades, "starts": starts, "unnamed": unnamed,
           "others": others}
#: study -> pictures beside its models
PICTURES = {"others": pictures_of_others}
