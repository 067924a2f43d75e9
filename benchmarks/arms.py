"""The arms that the studies of :mod:`benchmarks.quality` compare. Each study makes models by name for one prepared case."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from toybox.evaluation import Case

from . import rivals
from .toybox_runner import ToyboxRunner

PLAIN, REPLACED, MATCHED, GUIDED = "plain", "K+V replacement", "DreamMatcher", "DreamMatcher + guidance fast"
EVERYWHERE = "DreamMatcher without mask"


def arms(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    settings = runner.module("dreammatcher.matching.settings")
    matched = runner.matched(ready)
    return {
        PLAIN: runner.model,
        REPLACED: runner.matched(ready, injection=settings.REPLACED),
        MATCHED: matched,
        GUIDED: runner.guided(matched, mode="fast"),
        EVERYWHERE: runner.matched(ready, injection=settings.MATCHED_EVERYWHERE),
    }


def ablations(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """Choices that the specification leaves open."""
    inside = torch.from_numpy(ready.parts > 0).float()[None, None]
    return {
        PLAIN: runner.model,
        MATCHED: runner.matched(ready),
        "reference mask limits the match": runner.matched(ready, {"reference_mask": inside}),
        "soft foreground": runner.matched(ready, {"otsu": False}),
        "no slack beyond the paper's": runner.matched(ready, match={"least_slack": 0.0}),
        "as the paper divides the work": runner.matched(ready, match={"pca": 256, "shared": False}),
        "everything as in the paper": runner.matched(
            ready, {"otsu": False}, match={"pca": 256, "shared": False, "least_slack": 0.0}),
        "start 0.3": runner.matched(ready, start=0.3),
    }


def guidances(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """Matching alone, and led further in both modes."""
    matched = runner.matched(ready)
    return {
        PLAIN: runner.model,
        MATCHED: matched,
        "+ guidance fast 0.5": runner.guided(matched, mode="fast", weight=0.5),
        "+ guidance fast": runner.guided(matched, mode="fast"),
        "+ guidance paper": runner.guided(matched, mode="paper"),
    }


def trades(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """Arms that trade likeness for time or memory, each with one change from the default."""
    small = runner.ahead(ready, dtype=torch.float16, pca=64, noise_levels=20)
    coarse, fine = runner.blocks()
    return {
        PLAIN: runner.model,
        "balanced": runner.matched(ready),
        "paper": runner.matched(ready, match={"pca": 256, "shared": False}),
        "PCA 64": runner.matched(ready, match={"pca": 64}),
        "match every 2": runner.matched(ready, match={"every": 2}),
        "match every 4": runner.matched(ready, match={"every": 4}),
        "coarse level only": runner.matched(ready, layers=coarse),
        "fine level only": runner.matched(ready, layers=fine),
        "small store": runner.matched(small),
        "start 0.3": runner.matched(ready, start=0.3),
        "end 0.7": runner.matched(ready, end=0.7),
        "guidance fast": runner.guided(runner.matched(ready), mode="fast"),
    }


def starts(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """Arms that begin matching at different times, alone and with guidance."""
    later = {f"start {start}": runner.matched(ready, start=start) for start in (0.2, 0.3, 0.4)}
    return {
        PLAIN: runner.model,
        MATCHED: runner.matched(ready),
        **later,
        "+ guidance fast": runner.guided(runner.matched(ready), mode="fast"),
        "start 0.3, + guidance fast": runner.guided(later["start 0.3"], mode="fast"),
    }


def unnamed(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """The subject named, and taken from the prompts."""
    return {
        PLAIN: runner.model,
        MATCHED: runner.matched(ready),
        "words that both prompts share": runner.matched(ready, runner.named(ready, shared=True)),
        "all content words": runner.matched(ready, runner.named(ready, shared=False)),
    }


def others(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """References that no inversion was made of."""
    matched = runner.matched(ready)
    quick = {scale: runner.ahead(rivals.without_inversion(runner, ready, scale), both_rows=True) for scale in (1.0, 0.7)}
    return {
        PLAIN: runner.model,
        MATCHED: matched,
        "no inversion": runner.matched(quick[1.0]),
        "no inversion, 0.7 of the noise": runner.matched(quick[0.7]),
        "+ guidance fast": runner.guided(matched, mode="fast"),
        "no inversion, + guidance fast": runner.guided(runner.matched(quick[1.0]), mode="fast"),
    }


def pictures_of_others(runner: ToyboxRunner, ready: SimpleNamespace, case: Case) -> dict[str, np.ndarray]:
    """Pictures of arms that are not a model with settings, by name."""
    return {"diptych": rivals.diptych(runner, ready, case)}


STUDIES = {"arms": arms, "ablations": ablations, "guidance": guidances, "trades": trades, "starts": starts, "unnamed": unnamed,
           "others": others}
#: study -> pictures beside its models
PICTURES = {"others": pictures_of_others}
