"""Facts about families of models that the host does not tell."""

from __future__ import annotations

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from comfy.supported_models import SD20

from .backbone import network_of


def native_side(model) -> int:
    """Side in pixels of the square pictures that a model was made for."""
    base, config = model.model, model.model.model_config
    side = getattr(type(config), "side", None)  # Toybox's, which is no family of the host's; newer configs answer to any name
    if side is not None:
        return side
    if not isinstance(network_of(base), UNetModel):  # the transformers that are matched
        return 1024
    if (config.unet_config.get("adm_in_channels") or 0) > 2048:  # the large pooled prompt of SDXL and its kin
        return 1024
    if isinstance(config, SD20) and base.model_type is ModelType.V_PREDICTION:  # the host tells both kinds of SD2.x so
        return 768
    return 512


def pace_of(model) -> float:
    """Factor by which a training's steps may be larger than on a model of SD1.x's size. Tiny models say so in their config."""
    return getattr(type(model.model.model_config), "pace", 1.0)
