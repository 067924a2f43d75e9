"""Devices, by names that older versions of torch have too: ComfyUI brings torch, and installations of 2024 have 2.3."""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: raised when a device has no memory left; torch has it under this name since 2.5
OutOfMemory: type[BaseException] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


def accelerator() -> torch.device | None:
    """The accelerator that torch sees, or None. torch has a function for it since 2.6."""
    if hasattr(torch, "accelerator"):
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    for kind in ("cuda", "xpu", "mps"):
        module = getattr(torch, kind, None) if kind != "mps" else torch.backends.mps
        if module is not None and module.is_available():
            return torch.device(kind)
    return None


def device_of_process(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to the environment of a child process so that it sees only this process's card.

    That card is number ``LOCAL_RANK`` of the visible ones.

    Empty where no launcher has set ``LOCAL_RANK``. Raises ValueError when there are fewer cards than processes.
    """
    if "LOCAL_RANK" not in environment:
        return {}
    number = int(environment["LOCAL_RANK"])
    variable = "HIP_VISIBLE_DEVICES" if torch.version.hip and "HIP_VISIBLE_DEVICES" in environment else "CUDA_VISIBLE_DEVICES"
    if variable not in environment:
        return {variable: str(number)}
    seen = [name.strip() for name in environment[variable].split(",")]
    valid = next((place for place, name in enumerate(seen) if not name or name.startswith("-")), len(seen))  # as CUDA reads it
    if number >= valid:
        raise ValueError(f"{variable}: it shows {valid} cards ({environment[variable]!r}) and this is process {number} of this "
                         "machine, counted from 0; start as many processes as there are cards")
    return {variable: seen[number]}
