"""The reference as ViCo takes it, and its masks as pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from ...finite import finite
from ...training.data import Preparation, fitted
from ...vico.settings import LookTrace
from ..graph.notes import not_connected
from ..graph.pictures import Images, rgb_each, text_image
from ..graph.records import OUTSIDE, RECORDS, Viewer
from ..graph.vae import encoded
from ..model.family import native_side

#: noise levels that are shown, of all that a run had
SHOWN = 4
#: brightness of what is outside of a mask
DIM = 0.25


def reference_latent(model, image: Images | None, vae, latent: dict | None) -> torch.Tensor:
    """The reference [R, C, h, w] in the model's scale, from an IMAGE, or a list of IMAGEs, and its VAE, or from a LATENT.

    A picture keeps its shape and gets the size that the model was made for; further ones of a list are cut to the first one's.
    Raises ValueError, naming the input, when none or both are given, and when one is not finite.
    """
    if image is not None and latent is not None:
        raise ValueError("image and latent: give the reference as one of them, not both")
    if latent is not None:
        if not finite(latent["samples"]):
            raise ValueError("latent: the reference holds NaN or infinity; look at the VAE and the picture that it is made of")
        return model.model.process_latent_in(latent["samples"].float())
    if image is None:
        raise ValueError("image: there is no reference; connect a picture with its VAE, or a latent")
    if vae is None:
        raise ValueError("vae: an image needs it to become a latent; connect the checkpoint's VAE")
    side = native_side(model)
    pictures = [rearrange(picture, "h w c -> c h w") for picture in rgb_each("image", image)]
    size = Preparation(side, min(64, side // 8)).size(*pictures[0].shape[-2:])
    sized = torch.stack([fitted(picture, size) for picture in pictures])
    return model.model.process_latent_in(encoded(vae, rearrange(sized, "b c h w -> b h w c"), "image: the reference").float())


def shown_masks(trace: LookTrace | None, image: Images | None, viewer: Viewer = OUTSIDE) -> torch.Tensor:
    """IMAGE: a row of pictures for each of a few noise levels, one for each site: the reference, dark where it is not looked at.

    The reference is the first picture of ``image`` [B, H, W, C], or white without it. Without a trace it is a picture that
    says so. Raises ValueError when the run that ``viewer`` leads to looked at nothing, and when there is no record of it.
    """
    if trace is None or trace.missing:
        return text_image(trace.missing if trace else not_connected("trace", "ViCo Apply (DreamMatcher)", "no masks are shown"))
    run_records = RECORDS.find(trace.owner, viewer)
    if run_records is not None and len(run_records.records) != 1:
        raise ValueError(f"samples: {run_records.reason('ViCo Apply (DreamMatcher)')}")
    if run_records is not None:
        trace, = run_records.records
    if not trace.masks:
        raise ValueError(f"trace: nothing was looked at: {trace.why_nothing_seen() or 'there is no record of a mask'}")
    sigmas = sorted(trace.masks, reverse=True)
    chosen = [sigmas[round(number * (len(sigmas) - 1) / max(1, min(SHOWN, len(sigmas)) - 1))]
              for number in range(min(SHOWN, len(sigmas)))]
    finest = max((mask for mask in trace.masks[sigmas[0]].values()), key=torch.Tensor.numel)
    height, width = (side * 8 for side in finest.shape)
    picture = torch.ones(3, height, width) if image is None else fitted(
        rearrange(rgb_each("image", image)[0], "h w c -> c h w").cpu(), (height, width))
    rows = [[_dimmed(picture, mask) for mask in trace.masks[sigma].values()] for sigma in chosen]
    return rearrange(torch.stack([torch.cat(row, 2) for row in rows]), "n c h w -> n h w c")


def _dimmed(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    large = F.interpolate(mask[None, None].float(), size=picture.shape[-2:], mode="nearest")[0]
    return picture * (DIM + (1 - DIM) * large)
