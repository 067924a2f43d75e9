"""Weights in eight bits, one scale per output channel: half the size of half precision on disk.

In the file a quantised weight keeps its name, in int8, and its scales stand beside it as ``NAME.scale`` in half precision.
"""

from __future__ import annotations

import torch

SCALE = ".scale"
LARGEST = 127

#: weights with fewer numbers per output channel (biases, norms) stay in half precision
SMALLEST_ROW = 8


def quantise(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """int8 weights [out, ...] with fp16 scales [out]; everything else in fp16.

    The largest number of an output channel becomes 127. Raises ValueError when a scale does not fit half precision.
    """
    tensors = {}
    for name, weight in weights.items():
        if weight.ndim < 2 or weight[0].numel() < SMALLEST_ROW:
            tensors[name] = weight.half().contiguous()
            continue
        rows = weight.float().flatten(1)
        scale = (rows.abs().amax(1) / LARGEST).half()
        if not torch.isfinite(scale).all():
            raise ValueError(f"{name}: weights up to {rows.abs().max():.3g} do not fit the half precision of their scales")
        steps = rows / scale.float()[:, None].clamp_min(torch.finfo(torch.float32).tiny)
        tensors[name] = steps.round().clamp(-LARGEST, LARGEST).to(torch.int8).view(weight.shape).contiguous()
        tensors[name + SCALE] = scale
    return tensors


def dequantise(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The float32 weights of :func:`quantise`'s file, or of a file without int8 weights.

    Raises ValueError, naming the weight, when an int8 weight has not one scale for each output channel.
    """
    tensors = {}
    for name, weight in weights.items():
        if weight.dtype == torch.int8:
            scale = weights.get(name + SCALE)
            if scale is None or scale.shape != weight.shape[:1]:
                raise ValueError(f"{name} is in int8 with {weight.shape[0]} output channels and has "
                                 f"{'no' if scale is None else scale.numel()} scales; the file is damaged")
            tensors[name] = weight.float() * scale.float().view(-1, *[1] * (weight.ndim - 1))
        elif weights.get(name.removesuffix(SCALE), weight).dtype != torch.int8:
            tensors[name] = weight.float()
    return tensors
