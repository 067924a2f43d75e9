"""The reference as a picture: the size that the model can take, and its latent."""

from __future__ import annotations

import comfy.utils
import torch
from einops import rearrange

from ...backbones.base import Backbone
from ..graph.notes import tell
from ..graph.pictures import alpha_of, rgb
from ..graph.vae import encoded
from ..model.backbone import backbone_of
from ..model.family import native_side

CELL = 8  # pixels of a latent cell
NO_PICTURE = ("reference: there is no picture to invert; connect it to image, with the checkpoint's VAE, or as a LATENT, and if "
              "the node in front is bypassed or muted, switch that on again")
TWO_PICTURES = "image and reference: give the picture as one of them, not both; disconnect the LATENT or the IMAGE"
NO_VAE = "vae: an image needs it to become a latent; connect the checkpoint's VAE"


def least_side(backbone: Backbone) -> int:
    """Pixels of the shorter side that make one cell of the network's coarsest grid."""
    return CELL * backbone.coarsest


def sized(picture: torch.Tensor, side: int, least: int, name: str = "reference") -> torch.Tensor:
    """``picture`` [1, H, W, 3], made smaller when it has more pixels than a square of ``side``: a camera's photo takes hours.

    Raises ValueError, naming the input ``name``, when the shorter side has less than ``least`` pixels before or after.
    """
    height, width = picture.shape[1:3]
    scale = min(1.0, side / (height * width) ** 0.5)
    if min(height, width) < least:
        raise ValueError(f"{name}: it is {width}x{height} pixels; this model needs at least {least} on the shorter side. Give "
                         "a larger picture")
    if min(height, width) * scale < least:
        raise ValueError(f"{name}: {width}x{height} pixels are too long and narrow; at the size that this model was made for, "
                         f"{round(width * scale)}x{round(height * scale)}, the shorter side has less than {least}. Crop the "
                         "picture to the subject")
    if scale == 1:
        return picture
    height, width = (int(given * scale) // CELL * CELL for given in (height, width))
    planes = comfy.utils.common_upscale(rearrange(picture, "b h w c -> b c h w"), width, height, "lanczos", "disabled")
    return rearrange(planes, "b c h w -> b h w c")


def missing_picture(image: bool, vae: bool, latent: bool) -> str:
    """Why what is connected is not one reference, or an empty text."""
    if image and latent:
        return TWO_PICTURES
    if not image and not latent:
        return NO_PICTURE
    return NO_VAE if image and not vae else ""


def reference_latent(model, image: torch.Tensor | None, vae, latent: dict | None) -> dict:
    """LATENT of a reference, from itself or from an IMAGE [1, H, W, C] and its VAE.

    A picture that has more pixels than the model was made for is made smaller; its transparent parts become grey. Raises
    ValueError, naming the input, when both or none are given, or no VAE, when it is not one picture, too small or too long for
    the model, or not finite.
    """
    if refused := missing_picture(image is not None, vae is not None, latent is not None):
        raise ValueError(refused)
    if image is None:
        return latent or {}
    if alpha_of("image", image) is not None:
        tell("image: its transparent parts are inverted as grey; to match what is not transparent alone, give Mask "
             "(DreamMatcher) a reference_mask")
    if len(image) != 1:
        raise ValueError(f"image: there are {len(image)} pictures; give one, and invert each photo in a node of its own")
    picture = sized(rgb("image", image), native_side(model), least_side(backbone_of(model.model)), "image")
    return {"samples": encoded(vae, picture, "image: the reference")}
