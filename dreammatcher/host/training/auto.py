"""Fills in what a person left open, once the model is known: its resolution, and numbers that suit the method."""

from __future__ import annotations

from dataclasses import replace

from ...training.auto import Numbers
from ...training.sets import TrainingSet
from ...training.settings import TrainingOptions
from ..graph.notes import tell
from ..model.family import native_side, pace_of

#: share of a model's own side under which its pictures suffer
FAR_BELOW = 0.75
LARGEST_STEP = 64  # pixels that sides are multiples of


def numbers_for(method: str, model, rate: float, batch: int, options: TrainingOptions, text: bool = False,
                prior: bool = False) -> tuple[Numbers, TrainingOptions]:
    """Rate and batch of a method, 0 filled in, and options that tell with the plan what was filled in.

    Without a ``model`` (None) rates are those of SD1.x's size. Raises ValueError for numbers out of their ranges.
    """
    asked = Numbers(rate, batch)
    filled = asked.filled(method, options.optimiser.name, text, prior, 1.0 if model is None else pace_of(model))
    return filled, told(options, *asked.said(filled), splits=not batch and not options.accumulate)


def counted(subject_set: TrainingSet, prior: TrainingSet | None, weight: float) -> bool:
    """True if class pictures are learned from: a bypassed Prior Set (DreamMatcher) passes on the subject's own set."""
    return prior is not None and prior is not subject_set and weight > 0


def told(options: TrainingOptions, *said: str, splits: bool = False) -> TrainingOptions:
    """``options`` that tell with the plan what was chosen besides."""
    running = options.running
    chosen = "; ".join(part for part in (running.chosen, *said) if part)
    return replace(options, running=replace(running, chosen=chosen, splits=running.splits or splits))


def sized(model, subject_set: TrainingSet, options: TrainingOptions) -> tuple[TrainingSet, TrainingOptions]:
    """A training set at the model's own resolution where that was left open, and options that tell so with the plan.

    A resolution far below the model's own stays, and a warning says what it costs.
    """
    own, preparation = native_side(model), subject_set.preparation
    if not preparation.resolution:
        step = min(preparation.step, LARGEST_STEP, own)
        return (subject_set.same_way(replace(preparation, resolution=own, step=step)), told(options, f"resolution {own}"))
    if preparation.resolution <= FAR_BELOW * own:
        tell(f"resolution: {preparation.resolution} is far below {own}, which this model was made for; what it learns will look "
             f"cut or doubled at {own}. Set it to 0 or {own} in Training Set (DreamMatcher)")
    return subject_set, options
