"""Points at which a method looks into a call of the network and changes it, as patches of the host.

Transformers have theirs in :mod:`.attention_points`. In a UNet the host hands (n, context, value) through lists of patches in
front of the projections of every self- and cross-attention, and the feature that every output block is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...backbones.base import Grid, Site
from .compiling import hidden

#: (site, n [B, N, C], context [B, T, D], value [B, T, D], options) -> the three as attention is to take them
Attention = Callable[[Site, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], tuple]
#: the host's names of the patches
FIRST_BLOCK, VALUES, PROMPT, FEATURES = "input_block_patch", "attn1_patch", "attn2_patch", "output_block_patch"


@dataclass(frozen=True, eq=False)
class Pictures:
    """The values of the picture that is made and of the other pictures in a transformer's sequence, at one site."""

    value: torch.Tensor  # [B, N, C]
    grid: Grid  # H * W = N
    others: tuple[torch.Tensor, ...]  # [B, M, C] each
    grids: tuple[Grid, ...]


#: under which a method leaves :class:`Apart` in the options of a transformer's block
APART_KEY = "dreammatcher_apart"


@dataclass(frozen=True, eq=False)
class Apart:
    """Inputs of all queries of a transformer's block but those of some cells, which take what the method made."""

    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys and values
    cells: torch.Tensor  # bool [B, N, 1]


@dataclass(frozen=True, eq=False)
class Attended:
    """A transformer's attention at one site: what the picture got, its queries, and all keys and values, by heads."""

    output: torch.Tensor  # [B, heads, N, d]
    query: torch.Tensor  # [B, heads, N, d]
    key: torch.Tensor  # [B, heads, L, d]
    value: torch.Tensor  # [B, heads, L, d]
    others: tuple[slice, ...]  # the places of the other pictures among L
    mask: torch.Tensor | None  # added to the scores, can be broadcast to [B, heads, N, L]


@dataclass(frozen=True, eq=False)
class Points:
    """The actions of a method at the points of a call; where there is None the call is left alone."""

    begin: Callable[[torch.Tensor, dict[str, Any]], None] | None = None  # (first feature [B, C, h, w], options)
    #: in front of a site that reads the prompt; in one sequence with the picture's queries, the prompt's keys, and all keys
    prompt: Attention | None = None
    values: Attention | None = None  # in front of every self-attention
    feature: Callable[[int, torch.Tensor, dict[str, Any]], None] | None = None  # (tap, feature [B, C, h, w], options)
    misfit: Callable[[Site, dict[str, Any]], None] | None = None  # transformers: (where tokens do not fit the latent, options)
    pictures: Callable[[Site, Pictures, dict[str, Any]], torch.Tensor] | None = None  # transformers: the picture's values
    attended: Callable[[Site, Attended, dict[str, Any]], torch.Tensor] | None = None  # transformers: the picture's output

    def patches(self) -> dict[str, Callable]:
        """The host's patches by name, new functions at every call.

        torch.compile sees nothing of what they call: newer hosts have it skip the guards on transformer options, so one block's
        graph serves every block of the same shape.
        """
        patches = {FIRST_BLOCK: self.begin and _first_block(self.begin), PROMPT: self.prompt and _attention(self.prompt),
                   VALUES: self.values and _attention(self.values), FEATURES: self.feature and _feature(self.feature)}
        return {name: patch for name, patch in patches.items() if patch is not None}

    def alone(self) -> dict[str, list[Callable]]:
        """The same, as the only patches of a call."""
        return {name: [patch] for name, patch in self.patches().items()}


def _first_block(begin: Callable) -> Callable:
    def patch(h: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        hidden(at_first_block, h, options)
        return h

    def at_first_block(h: torch.Tensor, options: dict[str, Any]) -> None:
        if options["block"] == ("input", 0):
            begin(h, options)

    return patch


def _attention(look: Attention) -> Callable:
    def patch(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict[str, Any]) -> tuple:
        return hidden(at_site, n, context, value, extra)

    def at_site(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict[str, Any]) -> tuple:
        return look((*extra["block"], extra.get("block_index", 0)), n, context, value, extra)

    return patch


def _feature(keep: Callable) -> Callable:
    def patch(h: torch.Tensor, skip: torch.Tensor, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden(at_block, h, options)
        return h, skip

    def at_block(h: torch.Tensor, options: dict[str, Any]) -> None:
        keep(options["block"][1], h, options)

    return patch


def install_in_front(model: Any, patches: Mapping[str, Callable]) -> None:
    """Puts patches in front of those of other packs, which may regroup tokens: ours see them as the network made them.

    ``model`` is a clone that has its own lists of patches, as ``install_plan`` makes it.
    """
    known = model.model_options["transformer_options"]["patches"]
    for name, patch in patches.items():
        if patch not in known.get(name, ()):
            model.set_model_patch(patch, name)
            known[name] = [patch, *(other for other in known[name] if other is not patch)]


def install_behind(model: Any, patches: Mapping[str, Callable]) -> None:
    """Puts patches behind those that a model has."""
    for name, patch in patches.items():
        model.set_model_patch(patch, name)
