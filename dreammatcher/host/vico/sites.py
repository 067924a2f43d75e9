"""The sites of ViCo in the host's model, and what they see of a picture in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...backbones.base import Site
from ...vico.block import sites_of
from ...vico.mask import text_attention
from ...vico.recipe import SiteOutput
from ..model.backbone import unet_backbone_of
from ..model.blocks import Blocks, blocks_at, prompt_read, states_of, widths_of


def blocks_of(base: Any) -> dict[Site, Any]:
    """The host's block of each site.

    Raises ValueError for a model of another family than those known, and for one that reads the prompt in too few places.
    """
    sites = sites_of(unet_backbone_of(base).decoder_readers)
    if not sites:
        raise ValueError("model: its decoder reads the prompt in one place or none, and ViCo needs two; use an SD1.x checkpoint")
    return blocks_at(base, sites)


def widths(base: Any) -> dict[Site, tuple[int, int]]:
    """Width of the states and number of heads at each site. Raises ValueError as :func:`blocks_of`."""
    return widths_of(blocks_of(base))


def look(blocks: Blocks, call: Callable[[], Any]) -> dict[Site, SiteOutput]:
    """States and attention to the prompt at each site in ``call``, one call of the network that nobody patches.

    The call ends at the last site.
    """
    attention: dict[Site, torch.Tensor] = {}

    def keep(site: Site, queries: torch.Tensor, keys: torch.Tensor, heads: int) -> None:
        attention[site] = text_attention(queries, keys, heads)

    with prompt_read(blocks, keep):
        states = states_of(blocks, call)
    return {site: SiteOutput(states[site], attention[site]) for site in blocks}
