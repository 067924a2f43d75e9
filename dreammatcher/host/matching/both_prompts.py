"""The subject in the reference's prompt and in the new picture's, for the nodes that take both."""

from __future__ import annotations

from ...subject import Subject
from ..graph.notes import tell
from ..text.conditioning import encode_subject, subject_and_remarks
from ..text.other_encoders import UnknownEncoder
from .masks import said_of_both, shared_subjects


def subjects_of_both(clip, reference_prompt: str, prompt: str, words: str) -> tuple[Subject, Subject, tuple[str, ...]]:
    """The subject in each prompt, and remarks.

    Without ``words``, those that both prompts share are the subject, but for medium and scene, or else those of each. Raises
    ValueError, naming the prompt's input, when a subject word is missing in one of them, and UnknownEncoder where the text
    encoders do not tell where words stand.
    """
    reference, remarks = _subject(clip, "reference_prompt", reference_prompt, words)
    target, more = _subject(clip, "prompt", prompt, words)
    reference, target, of_both = shared_subjects(reference, target)
    return reference, target, said_of_both(of_both, remarks + more)


def encode_both(clip, reference_prompt: str, prompt: str, words: str) -> tuple[tuple, tuple[str, ...]]:
    """Both CONDITIONINGs and both subjects, the reference's first of each, and remarks. Raises as :func:`subjects_of_both`."""
    reference, target, remarks = subjects_of_both(clip, reference_prompt, prompt, words)
    shown, reference = encode_subject(clip, reference_prompt, reference)
    wanted, target = encode_subject(clip, prompt, target)
    return (shown, wanted, reference, target), remarks


def _subject(clip, name: str, text: str, words: str) -> tuple[Subject, tuple[str, ...]]:
    """:func:`subject_and_remarks`, whose error and remarks say which of the two prompts they are about."""
    try:
        subject, remarks = subject_and_remarks(clip, text, words, tell)
    except UnknownEncoder:
        raise
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return subject, tuple(f"{name}: {remark}" for remark in remarks)
