"""Gradient checkpointing (Chen et al. 2016): blocks of the host's UNet keep their inputs alone and run again for the gradient.

Other than the recomputation of guidance, which needs no gradient of weights, this one serves weights that learn, attention too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

from ..gradients import ordinary, with_weights

BLOCKS = (ResBlock, BasicTransformerBlock)  # all that keeps much
#: what a block is run inside of
Inside = Callable[[torch.nn.Module], AbstractContextManager]


@contextmanager
def recomputed(unet: torch.nn.Module, inside: Inside) -> Iterator[None]:
    """Inside, blocks run without a graph, and again in the backward pass, then within ``inside(block)``.

    Hooks that others have on a block see its output as ever.
    """
    hooks = []
    try:
        for block in unet.modules():
            if isinstance(block, BLOCKS):
                again = _Again(inside)
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
    autocast: tuple[str, torch.dtype, bool]

    def run(self, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
        def given(value: Any) -> Any:
            if not isinstance(value, _Place):
                return value
            return inputs[value.number].clone()  # the host works on it in place

        arguments, named = [given(value) for value in self.arguments], {name: given(value) for name, value in self.named.items()}
        device, dtype, enabled = self.autocast
        with torch.autocast(device, dtype, enabled, cache_enabled=False), self.inside(self.block):
            return with_weights(self.block, dict(zip(self.weights, weights)), lambda: self.block.forward(*arguments, **named))


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor among a call's arguments."""

    number: int


class _Again:
    """The hooks of one block."""

    def __init__(self, inside: Inside):
        self.inside, self.waiting = inside, None

    def before(self, block: torch.nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict] | None:
        names, weights = zip(*block.named_parameters())
        inputs: list[torch.Tensor] = []

        def placed(value: Any) -> Any:
            if not torch.is_tensor(value):
                return dict(value) if isinstance(value, dict) else value  # the host goes on writing into its options
            inputs.append(value)
            return _Place(len(inputs) - 1)

        places, named_places = tuple(map(placed, arguments)), {name: placed(value) for name, value in named.items()}
        if not (torch.is_grad_enabled() and any(value.requires_grad for value in (*inputs, *weights))):
            return None
        device = inputs[0].device.type
        autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        # the host adds to inputs in place later on
        kept = [value.clone() if value.is_floating_point() else value for value in inputs]
        self.waiting = (_Call(block, self.inside, places, named_places, names, autocast), kept, weights)
        torch.set_grad_enabled(False)
        return None

    def after(self, block: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if self.waiting is None:
            return output
        (call, kept, weights), self.waiting = self.waiting, None
        torch.set_grad_enabled(True)
        return _Rerun.apply(call, len(kept), [output], *kept, *weights)


class _Rerun(torch.autograd.Function):
    """``made[0]`` as what a call makes of tensors: its inputs, then its weights."""

    @staticmethod
    def forward(ctx, call: _Call, count: int, made: list[torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.call, ctx.count = call, count
        ctx.save_for_backward(*tensors)
        return ordinary(made[0])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        needed = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_(need) for value, need in zip(ctx.saved_tensors, needed)]
            output = ctx.call.run(leaves[:ctx.count], leaves[ctx.count:])
            wanted = [leaf for leaf, need in zip(leaves, needed) if need]
            found = iter(torch.autograd.grad(output, wanted, gradient.to(output.dtype), allow_unused=True))
        return None, None, None, *(next(found) if need else None for need in needed)
