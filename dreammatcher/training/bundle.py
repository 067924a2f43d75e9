"""Words that travel in a LoRA file, as A1111's web UI and OneTrainer write them.

Their names are ``bundle_emb.WORD.string_to_param.*`` for models with one text encoder, ``bundle_emb.WORD.clip_l`` and
``bundle_emb.WORD.clip_g`` for SDXL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

#: the word, and what its tensor is called
NAME = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..+|[^.]+)")
#: names of an embedding's tensors for SDXL, in the order of a prompt's states
TWO = ("clip_l", "clip_g")


def bundled(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Word -> tensors of its embedding by their names, of all that is bundled among the ``tensors`` of a file."""
    bundles: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if match := NAME.fullmatch(name):
            bundles.setdefault(match[1], {})[match[2]] = value
    return bundles


def rows_of(name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Vectors [V, D] in float32 of an embedding ``name`` that is one tensor, or one for each of SDXL's text encoders.

    Raises ValueError, naming it, for anything else.
    """
    if set(tensors) == set(TWO):
        parts = [_rows(tensors[key]) for key in TWO]
        if len(parts[0]) != len(parts[1]):
            raise ValueError(f"{name} has {len(parts[0])} and {len(parts[1])} vectors for SDXL's two text encoders, which need "
                             "as many each")
        return torch.cat(parts, 1)
    if len(tensors) != 1:
        raise ValueError(f"{name} holds {', '.join(sorted(tensors)[:3])}, which is neither one tensor of vectors nor clip_l and "
                         "clip_g")
    return _rows(next(iter(tensors.values())))


def _rows(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.ndim == 2 else value.float()[None]
