"""Gradients under a host that runs everything in inference mode, without a lasting write to the shared model.

Weights made in inference mode cannot be saved for backward. :func:`with_gradients` lets the UNet run on ordinary tensors
that share the weights' memory: nothing is copied, and the module has its own parameters back when the call is over.
Activations are recomputed in the backward pass where that can be done without calling any pack's patches twice; the hooks for
it are on the model during that call only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from comfy.ldm.modules.attention import FeedForward
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ...devices import OutOfMemory


class NoGradient(Exception):
    """The model cannot be differentiated here; the text says why."""


class _Around(torch.nn.Module):
    """A module and something to do with it, as one module."""

    def __init__(self, module: torch.nn.Module, action: Callable[[], Any]):
        super().__init__()
        self.module, self.action = module, action

    def forward(self) -> Any:
        return self.action()


def with_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], action: Callable[[], Any]) -> Any:
    """``action()`` while ``weights`` stand in for the module's own of these names."""
    return functional_call(_Around(module, action), {f"module.{name}": value for name, value in weights.items()}, ())


def with_gradients(base: Any, x: torch.Tensor, arguments: Any, action: Callable[[torch.Tensor, Any], Any]) -> Any:
    """``action`` of a leaf copy of ``x`` that requires gradients and of ``arguments`` fit for a backward pass.

    Raises :class:`NoGradient` when weights wait on another device or are no plain tensors: what the host copies in for
    one layer may be overwritten before the backward pass reads it.
    """
    unet = base.diffusion_model
    with torch.inference_mode(False), torch.enable_grad():
        plain = ordinary_weights(unet, x.device)
        ready = tree_map(lambda part: part.clone() if torch.is_tensor(part) else part, arguments)
        leaf = x.clone().requires_grad_()
        try:
            with recomputed(unet):
                return with_weights(unet, plain, lambda: action(leaf, ready))
        except OutOfMemory:
            raise
        except RuntimeError as error:  # an error of the model itself comes again in the plain call that follows
            raise NoGradient(str(error).splitlines()[0]) from error


def statically_loaded(patcher: Any) -> Any:
    """``patcher``, or one of the same model and patches whose weights stay on the device while it is in use.

    Newer hosts load weights layer by layer (ModelPatcherDynamic), which no gradient survives; they offer a second copy of the
    model for such cases. Raises :class:`NoGradient` when the host cannot make it, as of a model that no file was read for.
    """
    if not (hasattr(patcher, "is_dynamic") and patcher.is_dynamic()):
        return patcher
    try:
        return patcher.get_non_dynamic_delegate()
    except RuntimeError as error:
        raise NoGradient(str(error)) from error


def ordinary_weights(module: torch.nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers as ordinary tensors over the same memory. To be called outside of inference mode.

    Raises :class:`NoGradient` when some wait on another device or are no plain tensors.
    """
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in weights.items():
        if value.device != device:
            raise NoGradient(f"the host keeps part of the model on {value.device}")
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or not _computes(value):
            raise NoGradient(f"{name} is stored as {type(value).__name__} of {value.dtype}")
    return {name: ordinary(value) for name, value in weights.items()}


@contextmanager
def recomputed(unet: torch.nn.Module) -> Iterator[None]:
    """Inside, blocks that read no patches keep their input alone and run again in the backward pass (Chen et al. 2016).

    With attention held constant these are all that keep much. Blocks that another pack has hooked are left as they are.
    """
    hooks = []
    try:
        for block in unet.modules():
            if isinstance(block, (ResBlock, Downsample, FeedForward)) and not (block._forward_hooks or block._forward_pre_hooks):
                again = _Again()
                hooks += [block.register_forward_pre_hook(again.before), block.register_forward_hook(again.after)]
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Again:
    """One block that runs without a graph, and again for its gradient."""

    x: torch.Tensor | None = None

    def before(self, block: torch.nn.Module, inputs: tuple) -> tuple | None:
        if not (torch.is_grad_enabled() and inputs[0].requires_grad):  # the reference's own pass
            return None
        self.x = inputs[0]
        return self.x.detach(), *inputs[1:]

    def after(self, block: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        x, self.x = self.x, None
        return output if x is None else Rerun.apply(_OneInput(block.forward, inputs[1:]), [output], x.clone())[0]


@dataclass(frozen=True, eq=False)
class _OneInput:
    """A call of a block of which the first argument alone has a gradient."""

    forward: Callable[..., torch.Tensor]
    others: tuple

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [self.forward(*tensors, *self.others)]


class Call(Protocol):
    """A call that can be made again."""

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All that it makes of its tensors."""


class Rerun(torch.autograd.Function):
    """``results`` of a call without a graph: for the gradient the call is made again.

    The host works in place: on skip connections, so the tensors are to be copies, and on outputs, which must not be views.
    """

    @staticmethod
    def forward(ctx, call: Call, results: Sequence[torch.Tensor], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return tuple(map(ordinary, results))

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple:
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_(need) for value, need in zip(ctx.saved_tensors, needed)]
            wanted = [leaf for leaf, need in zip(leaves, needed) if need]
            results, given = zip(*((one, gradient.to(one.dtype)) for one, gradient in zip(ctx.call.run(leaves), gradients)
                                   if one.requires_grad))
            derivatives = iter(torch.autograd.grad(results, wanted, given, allow_unused=True))
        return None, None, *(next(derivatives) if need else None for need in needed)


def _computes(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def ordinary(value: torch.Tensor) -> torch.Tensor:
    """A normal tensor over the same memory."""
    alias = torch.empty(0, dtype=value.dtype, device=value.device)
    return alias.set_(value.untyped_storage(), value.storage_offset(), value.shape, value.stride())
