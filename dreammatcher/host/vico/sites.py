"""What the host's UNet sees at the sites of ViCo, and a change of it, by hooks that last as long as one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...backbones.unet import Layer, Structure, structure_of, transformer_blocks
from ...vico.block import sites_of
from ...vico.mask import text_attention
from ...vico.recipe import SiteOutput

#: the host's transformer block of each site
Blocks = Mapping[Layer, torch.nn.Module]
#: changes the states [B, N, D] behind a site's block, given the transformer options of the call
Change = Callable[[Layer, torch.Tensor, dict[str, Any]], torch.Tensor]


class _Seen(BaseException):
    """The last site has been seen. No error, so nobody's ``except Exception`` is to catch it."""


def sites_in(structure: Structure) -> tuple[Layer, ...]:
    """The sites of a UNet. Raises ValueError for one with too few decoder layers that read the prompt."""
    sites = sites_of([layer for layer in structure.cross_attention if layer[0] == "output"])
    if not sites:
        raise ValueError("model: its decoder reads the prompt in one place or none, and ViCo needs two; use an SD1.x checkpoint")
    return sites


def blocks_of(base: torch.nn.Module) -> dict[Layer, torch.nn.Module]:
    """Raises ValueError as :func:`sites_in`, and for a model that is no UNet."""
    return transformer_blocks(base, sites_in(structure_of(base)))


def widths_of(blocks: Blocks) -> dict[Layer, tuple[int, int]]:
    """Width of the states and number of heads at each site."""
    return {site: (block.attn2.heads * block.attn2.dim_head, block.attn2.heads) for site, block in blocks.items()}


def look(blocks: Blocks, call: Callable[[], Any]) -> dict[Layer, SiteOutput]:
    """What the sites see in ``call``, one call of the UNet that nobody patches; it ends at the last of them."""
    attention: dict[Layer, torch.Tensor] = {}

    def read(site: Layer) -> Callable:
        def hook(module: torch.nn.Module, inputs: tuple, named: dict) -> None:
            context = named["context"] if "context" in named else inputs[1]
            attention[site] = text_attention(module.to_q(inputs[0]), module.to_k(context), module.heads)
        return hook

    hooks = [block.attn2.register_forward_pre_hook(read(site), with_kwargs=True) for site, block in blocks.items()]
    try:
        states = states_of(blocks, call)
    finally:
        for hook in hooks:
            hook.remove()
    return {site: SiteOutput(states[site], attention[site]) for site in blocks}


def states_of(blocks: Blocks, call: Callable[[], Any]) -> dict[Layer, torch.Tensor]:
    """The states behind each site's block in ``call``, one call of the UNet; it ends at the last of them."""
    states: dict[Layer, torch.Tensor] = {}

    def keep(site: Layer) -> Callable:
        def hook(_: torch.nn.Module, __: tuple, output: torch.Tensor) -> None:
            states[site] = output
            if len(states) == len(blocks):
                raise _Seen
        return hook

    hooks = [block.register_forward_hook(keep(site)) for site, block in blocks.items()]
    try:
        with contextlib.suppress(_Seen):
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return states


@contextmanager
def changed(blocks: Blocks, change: Change) -> Iterator[None]:
    """Inside, the states behind the block of each site are what ``change`` makes of them."""
    def hook(site: Layer) -> Callable:
        return lambda _, inputs, named, output: change(site, output, named.get("transformer_options") or {})

    hooks = [block.register_forward_hook(hook(site), with_kwargs=True) for site, block in blocks.items()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
