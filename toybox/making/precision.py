"""Tells on which devices bfloat16 is fast."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """True if ``device`` multiplies bfloat16 in hardware. A CPU that does not emulates it, forty times slower than float32."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
