"""Gradient checkpointing (Chen et al. 2016): blocks of the host's network keep their inputs alone and run again for the gradient.

Guidance runs its blocks again by the same :class:`~.gradients.Rerun`, and needs no gradient of weights. Here weights learn,
attention's too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from typing import Any

import torch
import torch.utils.checkpoint
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

from ...weights import LowRank, WeightOverrides
from .gradients import Rerun
from .hooks import with_overrides

#: blocks of transformers: the host's module and class
IN_TRANSFORMERS = (("lumina.model", "JointTransformerBlock"), ("flux.layers", "DoubleStreamBlock"),
                   ("flux.layers", "SingleStreamBlock"), ("qwen_image.model", "QwenImageTransformerBlock"),
                   ("krea2.model", "SingleStreamBlock"), ("wan.model", "WanAttentionBlock"))


def _there() -> tuple[type, ...]:
    """Those blocks of transformers that the host has."""
    found: list[type] = []
    for module, name in IN_TRANSFORMERS:
        try:
            found.append(getattr(import_module(f"comfy.ldm.{module}"), name))
        except (ImportError, AttributeError):
            continue
    return tuple(found)


BLOCKS = (ResBlock, BasicTransformerBlock, *_there())  # all that keeps much
#: what a block is run inside of
Inside = Callable[[torch.nn.Module], AbstractContextManager]


def run_again_for_the_gradient(action: Callable[[], Any]) -> Any:
    """``action()``, which keeps nothing for the gradient and runs again for it. To be called outside of inference mode.

    It must draw no random numbers, and give the same each time.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.utils.checkpoint.set_checkpoint_early_stop(False):
        return torch.utils.checkpoint.checkpoint(action, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def recomputed(unet: torch.nn.Module, inside: Inside, overrides: WeightOverrides,
               collected: list[torch.Tensor]) -> Iterator[None]:
    """Inside, blocks run without a graph, and again in the backward pass, then within ``inside(block)``.

    ``overrides`` of the UNet's weights are in their places already; a block that runs again gets its low-rank ones by itself.
    Hooks that others have on a block see its output as ever. What patches inside of a block append to ``collected`` has a
    gradient too, and so has a tensor among the transformer options that needs one.
    """
    hooks = []
    low = {name: value for name, value in overrides.items() if isinstance(value, LowRank)}
    try:
        for path, block in unet.named_modules():
            if isinstance(block, BLOCKS):
                again = _Again(inside, {name.removeprefix(f"{path}."): value for name, value in low.items()
                                        if name.startswith(f"{path}.")}, collected)
                hooks += [block.register_forward_pre_hook(again.before, with_kwargs=True),
                          block.register_forward_hook(again.after, prepend=True)]
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a block, without its tensors."""

    block: torch.nn.Module
    inside: Inside
    arguments: tuple  # tensors replaced by their number
    named: Mapping[str, Any]
    weights: tuple[str, ...]
    low: Mapping[str, float]  # low-rank overrides, and their scales
    autocast: tuple[str, torch.dtype, bool]
    collected: list[torch.Tensor]  # what patches read in a block

    def run(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The output, and what patches collected.

        ``tensors``: inputs, the block's weights, then the factors A and B of each low-rank override.
        """
        factors = len(tensors) - 2 * len(self.low)
        inputs, weights = tensors[:factors - len(self.weights)], tensors[factors - len(self.weights):factors]
        low = {name: LowRank(down, up, scale)
               for (name, scale), down, up in zip(self.low.items(), tensors[factors::2], tensors[factors + 1::2])}

        def given(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: given(part) for name, part in value.items()}
            if isinstance(value, _Place):
                return inputs[value.number].clone()  # the host works on it in place
            return _each(value, given)

        arguments, named = [given(value) for value in self.arguments], {name: given(value) for name, value in self.named.items()}
        device, dtype, enabled = self.autocast
        before = len(self.collected)
        with torch.autocast(device, dtype, enabled, cache_enabled=False), self.inside(self.block):
            output = with_overrides(self.block, dict(zip(self.weights, weights)), low,
                                    lambda: self.block.forward(*arguments, **named))
        new = self.collected[before:]
        del self.collected[before:]
        return [*(output if isinstance(output, tuple) else (output,)), *new]


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` done to what a tuple, a list or a dataclass holds, as blocks take their modulation; others as they are."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(change, value))
    if is_dataclass(value) and not isinstance(value, (type, _Place)):
        return replace(value, **{one.name: change(getattr(value, one.name)) for one in fields(value)})
    return value


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor among a call's arguments."""

    number: int


class _Again:
    """The hooks of one block."""

    def __init__(self, inside: Inside, low: Mapping[str, LowRank], collected: list[torch.Tensor]):
        self.inside, self.low, self.collected, self.begun = inside, low, collected, 0
        self.waiting: tuple[_Call, tuple[torch.Tensor, ...]] | None = None

    def before(self, block: torch.nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict] | None:
        names, weights = zip(*block.named_parameters())
        inputs: list[torch.Tensor] = []

        def placed(value: Any) -> Any:
            if isinstance(value, dict):  # a copy: the host goes on writing into its options
                return {name: placed(part) if torch.is_tensor(part) and part.requires_grad else part
                        for name, part in value.items()}
            if not torch.is_tensor(value):
                return _each(value, placed)
            inputs.append(value)
            return _Place(len(inputs) - 1)

        places, named_places = tuple(map(placed, arguments)), {name: placed(value) for name, value in named.items()}
        learns = (*weights, *(factor for value in self.low.values() for factor in (value.down, value.up)))
        if not (torch.is_grad_enabled() and any(value.requires_grad for value in (*inputs, *learns))):
            return None
        device = inputs[0].device.type
        autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        # the host adds to inputs in place later on
        kept = [value.clone() if value.is_floating_point() else value for value in inputs]
        scales = {name: value.scale for name, value in self.low.items()}
        call = _Call(block, self.inside, places, named_places, names, scales, autocast, self.collected)
        self.waiting, self.begun = (call, (*kept, *learns)), len(self.collected)
        torch.set_grad_enabled(False)
        return None

    def after(self, block: torch.nn.Module, inputs: tuple, output: Any) -> Any:
        if self.waiting is None:
            return output
        (call, tensors), self.waiting = self.waiting, None
        torch.set_grad_enabled(True)
        outputs = output if isinstance(output, tuple) else (output,)
        results = Rerun.apply(call, [*outputs, *self.collected[self.begun:]], *tensors)
        self.collected[self.begun:] = results[len(outputs):]
        return tuple(results[:len(outputs)]) if isinstance(output, tuple) else results[0]
