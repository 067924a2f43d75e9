"""The transformers that ``make bench`` times: blocks of real size with random weights, as many as memory has room for.

What a match adds is a share of the blocks, so that ratios of fewer blocks are those of all; what stands in front of the blocks is
left out, which makes them rather higher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .timing_model import CACHED, FIRST, INSIDE, PLAIN, TimingModel, random_model

LOCKED = "locked"
HEAD = 128  # channels of one attention head


def z_image(width: int, blocks: int) -> dict:
    return {"in_channels": 16, "patch_size": 2, "cap_feat_dim": 2560, "dim": width, "n_layers": blocks, "n_refiner_layers": 0,
            "n_heads": width // HEAD, "n_kv_heads": width // HEAD, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
            "ffn_dim_multiplier": 8 / 3, "multiple_of": 256, "qk_norm": True, "rope_theta": 256.0, "z_image_modulation": True,
            "time_scale": 1000.0, "pad_tokens_multiple": 32}


def flux(width: int, blocks: int) -> dict:
    """A third of the blocks has two streams."""
    return {"in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": width, "num_heads": width // HEAD,
            "mlp_ratio": 4.0, "depth": blocks // 3, "depth_single_blocks": blocks - blocks // 3, "axes_dim": [16, 56, 56],
            "context_in_dim": 4096, "vec_in_dim": 768, "theta": 10000, "qkv_bias": True, "guidance_embed": True,
            "txt_ids_dims": []}


@dataclass(frozen=True)
class TransformerCase:
    """One setting in which all arms are compared."""

    host_class: str
    config: Callable[[int, int], dict]  # (width, blocks) -> the host's configuration of the network
    whole: int  # blocks of the real model
    context: int  # width of a prompt's tokens
    side: int  # of the latent
    arms: tuple[str, ...]
    width: int
    pooled: int | None = None  # width of the pooled prompt
    blocks: int = 0  # that are timed; 0: as many as there is room for
    batch: int = 1

    def fitting(self, free: int, dtype: torch.dtype) -> TransformerCase:
        """The case with as many blocks as half of ``free`` bytes hold: all of them, or a multiple of 12."""
        each = 18 * self.width ** 2 * dtype.itemsize  # at most, of both families
        room = int(free / 2 // each)
        return self if self.blocks else replace(self, blocks=min(self.whole, max(12, room // 12 * 12)))


ARMS = (PLAIN, FIRST, CACHED, INSIDE)
TRANSFORMERS = {
    "Z-Image 1024x1024": TransformerCase("ZImage", z_image, 30, 2560, 128, ARMS, 3840),
    "Flux.1 1024x1024": TransformerCase("Flux", flux, 57, 4096, 128, ARMS, 3072, pooled=768),
    "Flux.1 1024x1024, a picture in its sequence": TransformerCase("Flux", flux, 57, 4096, 128, (PLAIN, LOCKED), 3072,
                                                                   pooled=768),
}


def known() -> bool:
    """True if the host lets us into transformers."""
    from comfy.ldm.modules import attention

    return hasattr(attention, "wrap_attn")


class TimingTransformer(TimingModel):
    """A case's transformer with an inverted reference, or with a picture in its sequence."""

    tokens = 96
    cfg, level = 4.0, 0.5

    def build(self, dtype: torch.dtype):
        import comfy.supported_models

        kind = getattr(comfy.supported_models, self.case.host_class)
        return random_model(kind(self.case.config(self.case.width, self.case.blocks)), dtype, self.device)

    def prompt(self, seed: int) -> list:
        generator = torch.Generator().manual_seed(seed)
        told: dict[str, Any] = {}
        if self.case.pooled:
            told["pooled_output"] = torch.randn(1, self.case.pooled, generator=generator)
        if LOCKED in self.case.arms:
            told["reference_latents"] = [self.noise(1, 9)]
        return [[torch.randn(1, self.tokens, self.case.context, generator=generator), told]]

    def locked(self):
        """The model with a lock as new nodes have it."""
        locking = self.module("dreammatcher.matching.locking")
        return self.module("dreammatcher.host.matching.lock").lock(self.model, locking.LockSettings(way=locking.ATTENTION))[0]
