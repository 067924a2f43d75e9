"""Textual Inversion (Gal et al. 2022): everything is frozen but the vectors of one new word (Eq. 2)."""

from __future__ import annotations

import torch

from .trainables import TokenRows


def token_rows(initial: torch.Tensor, vectors: int, rate: float) -> TokenRows:
    """Rows that begin as a coarse word's own, [tokens, D], repeated or cut to ``vectors``.

    Raises ValueError when there is nothing to begin with, or fewer than one vector is wanted.
    """
    if vectors < 1:
        raise ValueError(f"vectors: {vectors} is not at least 1")
    if initial.ndim != 2 or len(initial) == 0:
        raise ValueError("initial_word: it has no token; give a coarse word for the subject, as dog or toy")
    return TokenRows(initial[torch.arange(vectors) % len(initial)], rate)
