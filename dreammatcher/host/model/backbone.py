"""From the host's model to the backbone of its family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_sampling
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...backbones import unet
from ...backbones.process import CONST, EPS, NoiseProcess, V

#: class of the host -> what reads its sites: (network, what it predicts) -> backbone
BACKBONES: dict[type, Callable[[Any, str], unet.UNetBackbone]] = {UNetModel: unet.backbone_of}
#: families by the names that artists know them by
KNOWN = "SD1.x, SD2.x or SDXL"
#: how the host turns an answer of the network into a clean picture -> the process that this belongs to
PROCESSES = ((getattr(comfy.model_sampling, "CONST", None), CONST), (comfy.model_sampling.V_PREDICTION, V),
             (comfy.model_sampling.EPS, EPS))


def network_of(base: Any) -> Any:
    """The network of the host's BaseModel as it was before torch.compile."""
    network = getattr(base, "diffusion_model", base)
    return getattr(network, "_orig_mod", network)


def backbone_of(base: Any) -> unet.UNetBackbone:
    """The backbone of the host's BaseModel.

    Raises ValueError, listing the families that are known, for a class of network that is none of them, and for a network that
    has nothing to match.
    """
    network = network_of(base)
    read = next((reader for known, reader in BACKBONES.items() if isinstance(network, known)), None)
    if read is None:
        raise ValueError(f"model: {type(network).__name__} is not a UNet, and DreamMatcher works inside a UNet's self-attention; "
                         f"use an {KNOWN} checkpoint")
    return read(network, base.model_type.name)


def process_of(sampling: object) -> NoiseProcess:
    """The noise process of a model's ``model_sampling``; models that predict something else are sampled as those of noise are."""
    return next((process for known, process in PROCESSES if known is not None and isinstance(sampling, known)), EPS)
