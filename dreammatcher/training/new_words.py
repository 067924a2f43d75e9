"""The words that a training teaches, one for each subject, and those from which they begin."""

from __future__ import annotations

from .sets import TrainingSet

#: rare words from which the authors of Custom Diffusion begin those of several concepts (Kumari et al. 2023, Sec. 3.3)
RARE = ("ktn", "pll", "ucd")


def words_of(subject_set: TrainingSet) -> tuple[str, ...]:
    """The word that is learned for each subject. Raises ValueError for a subject without an identifier."""
    for one in subject_set.subjects:
        if not one.naming.identifier:
            which = f" of {one.naming.class_word!r}" if subject_set.parts else ""
            raise ValueError(f"identifier: it is empty in the training set{which}, so there is no word to learn; write one there")
    return subject_set.words


def one_word_of(subject_set: TrainingSet, method: str) -> str:
    """The word of a method that learns one subject alone. Raises ValueError, naming the ``method``, for several."""
    if subject_set.parts:
        raise ValueError(f"training_set: it joins {len(subject_set.parts)} subjects ({', '.join(subject_set.words)}), and "
                         f"{method} learns one; connect one of the sets")
    return words_of(subject_set)[0]


def initial_words(text: str, subject_set: TrainingSet) -> dict[str, str]:
    """Each word that is learned, and the one from which it begins.

    Of several subjects, ``text`` is one word for each, with commas between, in the order of their sets; or one for all, of which
    the authors' "ktn" goes on with their other rare words. Raises ValueError for another count.
    """
    words = words_of(subject_set)
    begins = [part.strip() for part in text.split(",")] if len(words) > 1 else [text]
    if len(begins) == 1:
        begins = [RARE[number % len(RARE)] if begins[0] == RARE[0] else begins[0] for number in range(len(words))]
    if len(begins) != len(words):
        raise ValueError(f"initial_word: it has {len(begins)} words, and the training set {len(words)} subjects "
                         f"({', '.join(words)}); give one for each in this order, with commas between, or one for all")
    return dict(zip(words, begins, strict=True))
