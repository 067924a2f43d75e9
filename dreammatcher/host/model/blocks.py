"""The states behind some blocks of the host's network, read or changed by hooks that last as long as one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...backbones.base import Site
from ...backbones.unet import transformer_blocks
from .backbone import network_of

#: the host's block of each site
Blocks = Mapping[Site, Any]
#: changes the states [B, N, D] behind a site's block, given the transformer options of the call
Change = Callable[[Site, torch.Tensor, dict[str, Any]], torch.Tensor]
#: (site, queries [B, N, H d], keys [B, T, H d], number of heads H) of a site's attention to the prompt
Look = Callable[[Site, torch.Tensor, torch.Tensor, int], None]


class _Seen(BaseException):
    """The last site has been seen. No error, so nobody's ``except Exception`` is to catch it."""


def blocks_at(base: Any, sites: Iterable[Site]) -> dict[Site, Any]:
    """The blocks of some sites of the host's BaseModel."""
    return transformer_blocks(network_of(base), sites)


def widths_of(blocks: Blocks) -> dict[Site, tuple[int, int]]:
    """Width of the states and number of heads at each site."""
    return {site: (block.attn2.heads * block.attn2.dim_head, block.attn2.heads) for site, block in blocks.items()}


@contextmanager
def prompt_read(blocks: Blocks, look: Look) -> Iterator[None]:
    """Inside, ``look`` sees queries and keys of every site's attention to the prompt."""
    def read(site: Site) -> Callable:
        def hook(module: Any, inputs: tuple, named: dict) -> None:
            context = named["context"] if "context" in named else inputs[1]
            look(site, module.to_q(inputs[0]), module.to_k(context), module.heads)
        return hook

    hooks = [block.attn2.register_forward_pre_hook(read(site), with_kwargs=True) for site, block in blocks.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def states_of(blocks: Blocks, call: Callable[[], Any]) -> dict[Site, torch.Tensor]:
    """The states behind each site's block in ``call``, one call of the network; it ends at the last of them."""
    states: dict[Site, torch.Tensor] = {}

    def keep(site: Site) -> Callable:
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
    def hook(site: Site) -> Callable:
        return lambda _, inputs, named, output: change(site, output, named.get("transformer_options") or {})

    hooks = [block.register_forward_hook(hook(site), with_kwargs=True) for site, block in blocks.items()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
