"""Compares two results of the same computation, relative to their own size and number format."""

from __future__ import annotations

import torch

#: roundings that a few operations add up to, and those of a whole sampled or trained run
FEW, RUN = 64, 2048
#: those of what Adam learned: its first steps are of one length, however small a gradient is, so that roundings count for more
LEARNED = 2**17


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference in units of the largest expected value; the difference itself where nothing but zero is expected."""
    if result.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(result.shape)} and {tuple(expected.shape)}")
    result, expected = result.detach().double().cpu(), expected.detach().double().cpu()
    if not expected.numel():
        return 0.0
    size = expected.abs().max().item()
    return (result - expected).abs().max().item() / (size or 1.0)


def close(result: torch.Tensor, expected: torch.Tensor, roundings: float = FEW) -> bool:
    """True if the two differ by at most ``roundings`` unit roundings of the coarser of their number formats.

    Processors sum in different orders, so a bound is a share of the values' size, never an absolute number.
    """
    unit = max(torch.finfo(value.dtype).eps for value in (result, expected))
    return relative_error(result, expected) <= roundings * unit
