"""Text encoders of a CLIP.

SD1.x and SD2.x have one, SDXL two, each with its own token table: a learned word's vectors are those of all of them side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

#: keys of the tokens of CLIP's text encoders, in the order in which their states form a prompt
ORDER = ("l", "h", "g")


@dataclass(frozen=True, eq=False)
class Tower:
    """One text encoder."""

    name: str  # the key of its tokens
    table: torch.nn.Embedding  # of its tokens
    columns: slice  # its own of a word's vectors

    def part(self, vectors: torch.Tensor) -> torch.Tensor:
        """This encoder's columns of vectors [V, D]."""
        return vectors[..., self.columns]

    def __str__(self) -> str:
        return f"clip_{self.name}:{self.columns.stop - self.columns.start}"


def towers_of(clip: Any) -> tuple[Tower, ...]:
    """The text encoders of a CLIP. Raises ValueError for a model with other text encoders than CLIP's."""
    names = list(clip.tokenize(""))
    models: dict[str, Any] = {name: getattr(clip.cond_stage_model, f"clip_{name}", None) for name in names}
    strange = [name for name in names if name not in ORDER or models[name] is None]
    if strange:
        raise ValueError(f"clip: this model reads text with {', '.join(strange)}; words are learned and read with the text "
                         "encoders of SD1.x, SD2.x and SDXL")
    towers, start = [], 0
    for name in sorted(names, key=ORDER.index):
        table = models[name].transformer.get_input_embeddings()
        width = table.weight.shape[1]
        towers.append(Tower(name, table, slice(start, start + width)))
        start += width
    return tuple(towers)


def width_of(towers: tuple[Tower, ...]) -> int:
    """Width of a word's vectors over all towers."""
    return towers[-1].columns.stop


def encoder_signature(clip: Any) -> str:
    """The text encoders and their widths, for files."""
    return ",".join(map(str, towers_of(clip)))


def check_one(clip: Any, method: str) -> None:
    """Raises ValueError for a model with two text encoders, for a ``method`` that knows one."""
    if len(towers_of(clip)) > 1:
        raise ValueError(f"clip: this model has several text encoders (SDXL) and {method} is for SD1.x; use DreamBooth "
                         "(DreamMatcher) or Textual Inversion (DreamMatcher)")
