"""A subject that ViCo has learned: the tensors of its blocks by the authors' names, and the vector of its word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..backbones.base import Site
from ..backbones.unet import DECODER_PATH, decoder_path
from ..uncopied import Uncopied
from .block import SUFFIX, ImageAttention, name_of

#: the name of a tensor in the authors' files: of a site's block, and in it
NAME = re.compile(rf"{DECODER_PATH}{SUFFIX}\.(.+)")


@dataclass(frozen=True, eq=False)
class ViCo(Uncopied):
    """A subject as ViCo knows it. Belongs to no model object; fits every model of its family. A copy of it is itself."""

    tensors: dict[str, torch.Tensor]  # of all blocks, in float32
    rows: torch.Tensor  # [1, D], the word's row of the token table
    about: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("it holds no image attention")
        for name, value in (*self.tensors.items(), ("the word", self.rows)):
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if self.rows.ndim != 2 or not len(self.rows):
            raise ValueError(f"the word's vectors are {tuple(self.rows.shape)}, not [vectors, width]")
        for name in self.tensors:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name} is no name of image attention; those begin like {decoder_path(4)}.{SUFFIX}")

    @property
    def word(self) -> str:
        return self.about.get("word", "")

    def sites(self) -> tuple[int, ...]:
        """Numbers of the output blocks it has blocks for."""
        return tuple(sorted({int(found[1]) for name in self.tensors if (found := NAME.fullmatch(name))}))

    def blocks(self, widths: Mapping[Site, tuple[int, int]]) -> dict[Site, ImageAttention]:
        """Its blocks for a model whose sites have these widths and heads.

        Raises ValueError, naming the site or the tensor, when it was learned on another kind of model.
        """
        wanted = tuple(sorted(site[1] for site in widths))
        if wanted != self.sites():
            raise ValueError(f"it looks at the picture in output blocks {', '.join(map(str, self.sites()))} and this model's "
                             f"sites are {', '.join(map(str, wanted))}; it was learned on another kind of model")
        blocks = {}
        for site, (width, heads) in widths.items():
            with torch.device("meta"):
                block = ImageAttention(width, heads)
            tensors = {name.removeprefix(f"{name_of(site)}."): value for name, value in self.tensors.items()
                       if name.startswith(f"{name_of(site)}.")}
            _check(name_of(site), tensors, block.state_dict())
            block.load_state_dict(tensors, assign=True)
            blocks[site] = block
        return blocks


def tensors_of(blocks: Mapping[Site, ImageAttention]) -> dict[str, torch.Tensor]:
    """The tensors of some blocks under the authors' names, in main memory."""
    return {f"{name_of(site)}.{name}": value.detach().float().cpu().clone()
            for site, block in blocks.items() for name, value in block.state_dict().items()}


def _check(block: str, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or unknown:
        raise ValueError(f"{block} {'lacks ' + missing[0] if missing else 'has an unknown ' + unknown[0]}")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            raise ValueError(f"{block}.{name} is {'x'.join(map(str, value.shape))} and this model's is "
                             f"{'x'.join(map(str, wanted[name].shape))}; it was learned on another kind of model")
