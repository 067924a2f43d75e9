"""The share of the machine that a method may fill with what it keeps between runs."""

from __future__ import annotations

import comfy.model_management
import torch


def share_of_memory(stores: int = 1) -> int:
    """Bytes for each of some stores: together a quarter of the main memory."""
    return comfy.model_management.get_total_memory(torch.device("cpu")) // (4 * stores)
