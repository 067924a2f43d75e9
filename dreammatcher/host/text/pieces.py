"""One token of a text, and the place of a word in a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch

WORD_END = "</w>"  # of CLIP's byte-pair tokens (Radford et al. 2021)


@dataclass(frozen=True, eq=False)
class Piece:
    """One token of a text."""

    column: int
    token: object  # its number, or a vector where an embedding stands
    text: str | None  # as CLIP's vocabulary spells it; None where that is not known
    first: bool  # of its word
    markup: bool = False  # belongs to what other programs would replace

    def is_like(self, other: Piece) -> bool:
        a, b = self.token, other.token
        if torch.is_tensor(a) or torch.is_tensor(b):
            return torch.is_tensor(a) and torch.is_tensor(b) and a.shape == b.shape and bool(torch.equal(a, b))
        return a == b


@dataclass(frozen=True)
class Place:
    """The columns of a word in a prompt, and a remark for the user."""

    columns: tuple[int, ...]
    remark: str = ""
