"""Checks for NaN and infinity that name the part at fault."""

from __future__ import annotations

import torch


class NotFinite(ArithmeticError):
    """NaN or infinity where numbers are needed; the text names the part at fault."""


def finite(value: torch.Tensor) -> bool:
    """True if every value is finite. Waits for the device."""
    if value.is_floating_point() and value.element_size() == 1:  # torch knows few functions of eight-bit floats
        value = value.float()
    return bool(torch.isfinite(value).all())


#: what helps against NaN and infinity of a model
REMEDY = "compute in full precision (start ComfyUI with --force-fp32), or look for a damaged checkpoint or LoRA"


def demand(value: torch.Tensor, what: str) -> None:
    """Raises NotFinite, naming ``what`` it is, unless all of it is finite."""
    if not finite(value):
        raise NotFinite(f"{what} holds NaN or infinity")
