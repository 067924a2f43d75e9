"""Changes that a training makes to the host's modules while a call lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import torch
from torch.utils.hooks import RemovableHandle

from ...weights import LowRank, WeightOverrides, Weights
from .gradients import with_weights


@contextmanager
def removed_after(hooks: list[RemovableHandle]) -> Iterator[None]:
    """Takes ``hooks`` off again at the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def norms_keep_their_input(module: torch.nn.Module) -> AbstractContextManager:
    """Inside, every LayerNorm works on a copy of its input: older hosts add residuals to it in place before its gradient is
    made."""
    def copied(_: torch.nn.Module, inputs: tuple) -> tuple:
        return tuple(value.clone() if torch.is_tensor(value) and value.requires_grad else value for value in inputs)

    return removed_after([layer.register_forward_pre_hook(copied) for layer in module.modules()
                          if isinstance(layer, torch.nn.LayerNorm)])


@contextmanager
def told_of_training(learns: bool = True) -> Iterator[None]:
    """Inside, where something ``learns``, the host computes transformers without its fused kernels, which have no gradient.

    It is the switch that its own trainer sets, and it is as it was afterwards.
    """
    before = getattr(comfy.model_management, "in_training", None)
    if before is None or not learns:
        yield
        return
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def outputs_changed(module: torch.nn.Module, weights: tuple[str, ...],
                    change: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager:
    """Inside, the outputs of the layers whose weights' names end in one of ``weights`` are what ``change`` makes of them."""
    ends = tuple(name.removesuffix(".weight") for name in weights)
    return removed_after([layer.register_forward_hook(lambda _, __, output: change(output))
                          for name, layer in module.named_modules() if name.endswith(ends)])


def rows_in_place_of(table: torch.nn.Module, token: int, rows: torch.Tensor) -> AbstractContextManager:
    """Inside, the places of ``token`` get ``rows`` [V, D] in turn in place of what the token table has, in all texts that are
    read: some hosts read them together, some one after the other."""
    before = 0

    def replaced(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        nonlocal before
        places = inputs[0] == token
        number = (before + places.flatten().cumsum(0).view_as(places) - 1).clamp_min(0) % len(rows)
        before += int(places.sum())
        return torch.where(places[..., None], rows.to(output)[number], output)

    return removed_after([table.register_forward_hook(replaced)])


def with_overrides(module: torch.nn.Module, weights: Weights, overrides: WeightOverrides, action: Callable[[], Any]) -> Any:
    """``action()`` while ``module`` has the given weights and, where there are any, their ``overrides``.

    Low-rank ones add to the outputs of their layers.
    """
    low = {name: value for name, value in overrides.items() if isinstance(value, LowRank)}
    whole = {name: value for name, value in overrides.items() if not isinstance(value, LowRank)}
    with low_rank_added(module, low):
        return with_weights(module, {**weights, **whole}, action)


def low_rank_added(module: torch.nn.Module, low: Mapping[str, LowRank]) -> AbstractContextManager:
    """Inside, linear layers and convolutions of ``module`` give what they would with another weight."""
    def added(value: LowRank, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + value.added(inputs[0], layer).to(output)

    return removed_after([module.get_submodule(name.removesuffix(".weight")).register_forward_hook(partial(added, value))
                          for name, value in low.items()])
