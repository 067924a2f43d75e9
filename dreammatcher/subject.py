"""A prompt as a UNet takes it, and the tokens in it that name a subject."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Subject:
    """Which tokens of a prompt name the subject. Raises ValueError for columns outside the conditioning."""

    words: str
    prompt: str
    columns: tuple[int, ...]  # token positions in the conditioning
    tokens: int  # length of the conditioning

    def __post_init__(self) -> None:
        if not self.columns or min(self.columns) < 0 or max(self.columns) >= self.tokens:
            raise ValueError(f"subject {self.words!r}: columns {self.columns} do not fit {self.tokens} tokens")


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoded prompt."""

    cross_attention: torch.Tensor  # [1, T, C]; [B, T, C] where a batch is learned from
    pooled: torch.Tensor | None = None  # [1, P] or [B, P], models with a pooled text input
