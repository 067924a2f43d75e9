"""The place of a subject where prompt and picture attend in one sequence.

ConceptAttention (Helbling et al. 2025, arXiv 2502.04320): attention makes an output of every token of the picture and of the
prompt, in one space. A cell that shows what a word says has an output like the word's. The paper puts concepts of its own beside
the prompt; here they are the prompt's own words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def word_likeness(picture: torch.Tensor, text: torch.Tensor, columns: Sequence[int], others: Sequence[int]) -> torch.Tensor:
    """The likeness of every cell to some words more than to the others, [B, N], 0 to 1 in each picture.

    ``picture`` [B, N, C] and ``text`` [B, T, C] are outputs of one attention; ``columns`` are the words' among T, and ``others``
    those of the words that they are compared with. A picture in which all cells are alike is all 0.

    Raises ValueError when a column lies outside the text or there is none.
    """
    if not columns or not others or not all(0 <= column < text.shape[1] for column in (*columns, *others)):
        raise ValueError(f"columns {list(columns)} and {list(others)} do not fit a text of {text.shape[1]} tokens")
    words = _mean(text, columns) - _mean(text, others)
    # in float32, and without what all cells share: it would use up the digits of what tells them apart
    cells = picture.float() - picture.float().mean(1, keepdim=True)
    scores = (cells @ words[..., None])[..., 0]
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    span = high - low
    return torch.where(span > 0, (scores - low) / span.clamp_min(torch.finfo(scores.dtype).tiny), torch.zeros_like(scores))


def _mean(text: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
    """The mean [B, C] of some tokens; one by one, as a list for an index would be copied to the device, which waits for it."""
    return torch.stack([text[:, column].float() for column in columns]).mean(0)
