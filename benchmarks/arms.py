"""The arms that the studies of :mod:`benchmarks.quality` compare. Each study makes models by name for one prepared case."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from toybox.evaluation import Case
from toybox.judge import load_judge, look

from . import rivals
from .toybox_runner import ToyboxRunner

PLAIN, REPLACED, MATCHED, GUIDED = "plain", "K+V replacement", "balanced", "balanced + guidance fast"
EVERYWHERE = "balanced without mask"
#: as Easy (DreamMatcher) and new nodes have it, and the same with the reference's true mask
BEST, EASY, MASKED = "best", "best + guidance inside (Easy)", "best + guidance inside, with a MASK"


def arms(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    settings = runner.module("dreammatcher.matching.settings")
    matched, best = runner.matched(ready), runner.best(ready)
    return {
        PLAIN: runner.model,
        REPLACED: runner.matched(ready, injection=settings.REPLACED),
        EVERYWHERE: runner.matched(ready, injection=settings.MATCHED_EVERYWHERE),
        MATCHED: matched,
        GUIDED: runner.guided(matched, mode="fast"),
        BEST: best,
        EASY: runner.easy(ready),
        MASKED: runner.easy(ready, {"reference_mask": true_mask(ready)}),
    }


def true_mask(ready: SimpleNamespace) -> torch.Tensor:
    """The reference's subject as an alpha channel or a painted MASK would give it, [1, 1, H, W]."""
    return torch.from_numpy(ready.parts > 0).float()[None, None]


def steps_to_best(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """From balanced to best, one change at a time, and what was left out."""
    carried, early, best = runner.matched(ready, {"carried": True}), runner.best(ready, start=0.08), runner.best(ready)

    def from_(start: float, weight: float = 1.0, **more):
        return runner.guided(runner.best(ready, start=start, **more), mode="inside", weight=weight, start=start)

    return {
        PLAIN: runner.model,
        MATCHED: runner.matched(ready),
        "+ foreground carried over": carried,
        "+ sharpness 0.5": early,
        "+ start 0.2 (best)": best,
        "+ guidance inside, weight 1": from_(0.2),
        "+ weight 1.5 (Easy)": runner.easy(ready),
        "Easy, weight 2": from_(0.2, 2.0),
        "Easy, guidance fast": runner.guided(best, mode="fast", weight=1.5, start=0.2),
        "Easy, start 0.08, weight 1": from_(0.08),
        "Easy, start 0.32": from_(0.32, 1.5),
        "Easy with sharpness 1": from_(0.2, 1.5, match={"sharpness": 1.0}),
        "Easy, cycle threshold 0.1": from_(0.2, 1.5, mask={"threshold": 0.1}),
    }


def oracles(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """The truth in place of what the method guesses: where the error comes from."""
    plain = runner.sample(runner.model, ready.target, ready.negative, ready.seed)
    target = {"target_mask": torch.from_numpy(look(load_judge(), plain).parts > 0).float()[None, None]}
    reference, free = {"reference_mask": true_mask(ready)}, {"threshold": 10.0}
    return {
        PLAIN: runner.model,
        MATCHED: runner.matched(ready),
        "the target's true foreground": runner.matched(ready, target),
        "no cycle test": runner.matched(ready, free),
        "both": runner.matched(ready, {**target, **free}),
        BEST: runner.best(ready),
        "best, the target's true foreground": runner.best(ready, target),
        "best, the reference's true foreground": runner.best(ready, reference),
    }


def ablations(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """Choices that the specification leaves open."""
    return {
        PLAIN: runner.model,
        MATCHED: runner.matched(ready),
        "reference mask limits the match": runner.matched(ready, {"reference_mask": true_mask(ready)}),
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


def begins(runner: ToyboxRunner, ready: SimpleNamespace) -> dict[str, object]:
    """Easy by where matching begins and how strongly guidance leads."""
    def led(start: float, weight: float):
        return runner.guided(runner.best(ready, start=start), mode="inside", weight=weight, start=start)

    chosen = ((0.08, 1.0), (0.16, 1.0), (0.16, 1.5), (0.2, 1.0), (0.2, 1.5), (0.24, 1.0), (0.24, 2.0), (0.32, 1.0))
    return {PLAIN: runner.model, **{f"start {start}, weight {weight:g}": led(start, weight) for start, weight in chosen}}


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


STUDIES = {"arms": arms, "best": steps_to_best, "oracles": oracles, "ablations": ablations, "guidance": guidances,
           "trades": trades, "starts": starts, "begins": begins, "unnamed": unnamed, "others": others}
#: study -> pictures beside its models
PICTURES = {"others": pictures_of_others}
