"""MODEL and CLIP with all weights in the device's memory, as training needs them."""

from __future__ import annotations

from typing import Any

import torch

from ..model.gradients import NoGradient, ordinary_weights, statically_loaded


def whole(name: str, patcher: Any) -> Any:
    """``patcher``, or a copy of it whose weights stay on the device. Raises ValueError, naming the input, where there is none."""
    try:
        return statically_loaded(patcher)
    except NoGradient as error:
        raise refused(name, error) from error


def whole_clip(clip: Any) -> Any:
    """``clip``, or a copy whose weights stay on the device. Raises ValueError as :func:`whole`."""
    patcher = whole("clip", clip.patcher)
    if patcher is clip.patcher:
        return clip
    copied = clip.clone()
    copied.patcher, copied.cond_stage_model = patcher, patcher.model
    return copied


def weights_of(name: str, module: torch.nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """The weights of a loaded ``module`` as ordinary tensors. Raises ValueError, naming the input, where they are none."""
    try:
        with torch.inference_mode(False):
            return ordinary_weights(module, device)
    except NoGradient as error:
        raise refused(name, error) from error


def refused(name: str, error: NoGradient) -> ValueError:
    """The error that names an input which cannot be trained on."""
    return ValueError(f"{name}: it cannot be trained on here ({error}); load it from a file that is not quantised, start ComfyUI "
                      "with --disable-dynamic-vram, or train on a card with more memory")
