"""From the inputs of Mask (DreamMatcher) to mask settings."""

from __future__ import annotations

import logging
from typing import overload

import torch

from ...matching.settings import MaskSettings
from ...subject import Subject
from ..graph.masks import mask_grid, one_mask
from ..graph.notes import tell
from ..text.words import other_numbers

log = logging.getLogger(__name__)

#: of a match's way there and back
THRESHOLD = MaskSettings.threshold
SHARED = "the words that both prompts share are taken"


def mask_settings(
    reference_subject: Subject | None, target_subject: Subject | None, reference_mask: torch.Tensor | None,
    target_mask: torch.Tensor | None, threshold: float, otsu: bool, carried: bool = False,
) -> MaskSettings:
    """Raises ValueError, naming the input, for masks that are empty, not finite or not [B, H, W]."""
    return MaskSettings(reference_subject, target_subject, one_mask("reference_mask", reference_mask),
                        mask_grid("target_mask", target_mask), threshold, otsu, carried)


def mask_or_subjects(mask: MaskSettings | None, reference: Subject | None,
                     target: Subject | None) -> tuple[MaskSettings | None, tuple[str, ...]]:
    """The settings of Mask (DreamMatcher), or else those that it makes of two subjects by its defaults, and remarks.

    None where nothing is given. Raises ValueError, naming the input, when both are given, and for a reference's subject alone.
    """
    named = [name for name, subject in (("reference_subject", reference), ("target_subject", target)) if subject is not None]
    if mask is not None and named:
        raise ValueError(f"mask and {' and '.join(named)}: the subject is said twice; connect the subjects to Mask "
                         "(DreamMatcher), or disconnect the mask")
    if not named:
        return mask, ()
    reference, target, remarks = shared_subjects(reference, target)
    return mask_settings(reference, target, None, None, THRESHOLD, True, True), remarks


@overload
def shared_subjects(reference: Subject, target: Subject) -> tuple[Subject, Subject, tuple[str, ...]]: ...


@overload
def shared_subjects(reference: Subject | None,
                    target: Subject | None) -> tuple[Subject | None, Subject | None, tuple[str, ...]]: ...


def shared_subjects(reference: Subject | None, target: Subject | None) -> tuple[Subject | None, Subject | None, tuple[str, ...]]:
    """:func:`shared`, with what it says in the log, and on the node where the prompts share nothing."""
    if reference is None or target is None:
        return reference, target, ()
    mine, theirs, remark = shared(reference, target)
    if remark and SHARED not in remark:
        tell(remark)
    elif remark:
        log.info("DreamMatcher: %s", remark)
    return mine, theirs, (remark,) if remark else ()


def shared(reference: Subject, target: Subject) -> tuple[Subject, Subject, str]:
    """Both subjects, limited to the words that both prompts share where nobody named any, and what is to be said.

    Singular and plural count as the same word. Where they share nothing both stay as they are.
    """
    if reference.named or target.named:
        return reference, target, ""
    mine, theirs = ({word.lower(): word for word, _ in subject.choices} for subject in (reference, target))
    pairs = [(spelling, theirs[same]) for word, spelling in mine.items()
             if (same := next((other for other in (word, *other_numbers(word)) if other in theirs), None)) is not None]
    if not pairs:
        return reference, target, (f"subject_words: none given, and the prompts share no word: {reference.words!r} and "
                                   f"{target.words!r}; name the subject in both")
    reference, target = (subject.limited(words) for subject, words in zip((reference, target), zip(*pairs)))
    return reference, target, f"subject_words: none given; {SHARED}: {target.words}"


def said_of_both(of_both: tuple[str, ...], of_each: tuple[str, ...]) -> tuple[str, ...]:
    """The remarks on two prompts: on both, then on each, but for words that are no longer taken."""
    if any(SHARED in remark for remark in of_both):
        of_each = tuple(remark for remark in of_each if "none given" not in remark)
    return of_both + of_each
