"""The preview node's pictures, saved where the host's front end looks for them."""

from __future__ import annotations

import random

import folder_paths
import torch
from einops import rearrange
from PIL import Image

from ..preview import panels
from ..settings import Trace

PREVIEW_SIDE = 384


def show(trace: Trace, images: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """IMAGE batch of six panels for each of ``images`` [B, H, W, 3], and the node's ui entry.

    Raises ValueError when the trace is empty: the sampled model was not the one DreamMatcher Apply returned.
    """
    snapshot = trace.last()
    if snapshot is None:
        reasons = "".join(f". Left out: {reason}" for reason in trace.skipped)
        raise ValueError("trace: nothing was matched. Sample with the MODEL output of DreamMatcher Apply, with strength "
                         f"above 0 and more than one step between start and end{reasons}")
    sources = [rearrange(picture, "h w c -> c h w").float().cpu() for picture in reference]
    made, strips = [], []
    for index, image in enumerate(images):
        row = panels(snapshot, rearrange(image, "h w c -> c h w").float().cpu(), sources, index)
        made.extend(rearrange(panel, "c h w -> h w c") for panel in row)
        strips.append(torch.cat(row, 2))
    return torch.stack(made), {"images": [_save(strip) for strip in strips]}


def _save(strip: torch.Tensor) -> dict:
    """Writes one strip of panels into the host's temp folder; returns what the front end needs to fetch it."""
    name = f"dreammatcher_{random.SystemRandom().getrandbits(48):012x}"
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(name, folder_paths.get_temp_directory())
    picture = Image.fromarray((rearrange(strip, "c h w -> h w c").clamp(0, 1) * 255).round().byte().numpy())
    if picture.height < PREVIEW_SIDE:
        factor = max(1, round(PREVIEW_SIDE / picture.height))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.NEAREST)
    file = f"{name}_{counter:05}_.png"
    picture.save(f"{folder}/{file}", compress_level=1)
    return {"filename": file, "subfolder": subfolder, "type": "temp"}
