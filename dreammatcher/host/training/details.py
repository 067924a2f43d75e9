"""The finer choices of a training, held against what a method and its pictures can make of them."""

from __future__ import annotations

from dataclasses import replace

from ...training.details import Uses
from ...training.sets import TrainingSet
from ...training.settings import TrainingOptions


def taught(options: TrainingOptions, uses: Uses, subject_set: TrainingSet,
           prior: TrainingSet | None = None) -> tuple[TrainingSet, TrainingSet | None]:
    """The sets, with captions that change as the options say.

    Raises ValueError, naming the input, for a choice that would do nothing with this method or these captions.
    """
    uses.check(options.details)
    changes = options.details.captions
    captions = [text for example in subject_set.examples for text in example.captions]
    if changes.shuffle and not any(len(changes.tags(text)[1]) > 1 for text in captions):
        raise ValueError(f"caption_shuffle: no caption of the training set has two tags, divided by a comma, behind the first "
                         f"{changes.keep} that stay, as {captions[0]!r}; write captions of tags, lower keep_tags, or turn it off")
    return replace(subject_set, changes=changes), None if prior is None else replace(prior, changes=changes)
