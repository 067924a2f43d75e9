"""Facts about families of models that the host does not tell."""

from __future__ import annotations

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from comfy.supported_models import SD15, SD20, SDXL, SDXLRefiner

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


def cell_of(model) -> int:
    """Side in pixels of a cell of a model's latents."""
    return getattr(model.model.latent_format, "spacial_downscale_ratio", 8)  # as the host spells it; older ones have 8 alone


def architecture_of(model) -> tuple[str, str]:
    """A family's name in Stability's model metadata, and in kohya's: ("stable-diffusion-v1", "sd_v1").

    Others have the name of the host's configuration in both.
    """
    config, velocity = model.model.model_config, model.model.model_type is ModelType.V_PREDICTION
    if isinstance(config, SDXLRefiner):
        return "stable-diffusion-xl-v1-refiner", "sdxl_refiner_v1-0"
    if isinstance(config, SDXL):
        return "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"
    if isinstance(config, SD20):
        return ("stable-diffusion-v2-768-v", "sd_v2_v") if velocity else ("stable-diffusion-v2-512", "sd_v2")
    if isinstance(config, SD15):
        return "stable-diffusion-v1", "sd_v1_v" if velocity else "sd_v1"
    return (type(config).__name__.lower(),) * 2


def pace_of(model) -> float:
    """Factor by which a training's steps may be larger than on a model of SD1.x's size. Tiny models say so in their config."""
    return getattr(type(model.model.model_config), "pace", 1.0)
