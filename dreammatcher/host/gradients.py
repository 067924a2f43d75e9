"""Gradients under a host that runs everything in inference mode, without a write to the shared model.

Weights made in inference mode can not be saved for backward. :func:`with_gradients` lets the UNet run on ordinary tensors
that share the weights' memory: nothing is copied, and the module has its own parameters back when the call is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call
from torch.utils._pytree import tree_map


class NoGradient(Exception):
    """The model can not be differentiated here; the text says why."""


class _Around(torch.nn.Module):
    """A UNet and something to do with it, as one module."""

    def __init__(self, unet: torch.nn.Module, action: Callable[[], Any]):
        super().__init__()
        self.unet, self.action = unet, action

    def forward(self) -> Any:
        return self.action()


def with_gradients(base: torch.nn.Module, x: torch.Tensor, arguments: Any, action: Callable[[torch.Tensor, Any], Any]) -> Any:
    """``action`` of a leaf copy of ``x`` that requires gradients and of ``arguments`` fit for a backward pass.

    Raises :class:`NoGradient` when weights wait on another device or are no plain tensors: what the host copies in for
    one layer may be overwritten before the backward pass reads it.
    """
    unet = base.diffusion_model
    weights = {**dict(unet.named_parameters()), **dict(unet.named_buffers())}
    for name, value in weights.items():
        if value.device != x.device:
            raise NoGradient(f"the host keeps part of the model on {value.device}")
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or not _computes(value):
            raise NoGradient(f"{name} is stored as {type(value).__name__} of {value.dtype}")
    with torch.inference_mode(False), torch.enable_grad():
        plain = {f"unet.{name}": _ordinary(value) for name, value in weights.items()}
        ready = tree_map(lambda part: part.clone() if torch.is_tensor(part) else part, arguments)
        leaf = x.clone().requires_grad_()
        try:
            return functional_call(_Around(unet, lambda: action(leaf, ready)), plain, ())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an error of the model itself comes again in the plain call that follows
            raise NoGradient(str(error).splitlines()[0]) from error


def _computes(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _ordinary(value: torch.Tensor) -> torch.Tensor:
    """A normal tensor over the same memory."""
    alias = torch.empty(0, dtype=value.dtype, device=value.device)
    return alias.set_(value.untyped_storage(), value.storage_offset(), value.shape, value.stride())
