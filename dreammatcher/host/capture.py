"""One pass of the UNet over the reference, and what is recorded in it."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from einops import rearrange

from ..attention import attention_columns, foreground, repeated_columns
from ..matching.features import COND, Layer, RowFeatures
from ..matching.reference import Conditioning, Reference, Subject
from .compiling import uncompiled
from .conditioning import model_arguments
from .structure import Structure, attention_modules, halved


@dataclass(frozen=True)
class SubjectMaps:
    """Reads the subject's columns out of cross-attention, beside the attention itself."""

    modules: dict[Layer, torch.nn.Module]
    levels: dict[Layer, int]
    subject: Subject

    @staticmethod
    def of(base: torch.nn.Module, structure: Structure, subject: Subject, latent_size: tuple[int, int]) -> SubjectMaps:
        layers = structure.map_layers(latent_size)
        return SubjectMaps(attention_modules(base, layers), structure.cross_attention, subject)

    def read(self, layer: Layer, query: torch.Tensor, context: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor | None:
        """The map [B, 1, h, w] of one layer, or None when another pack changed its token count."""
        height, width = halved(latent_size, self.levels[layer])
        if query.shape[1] != height * width:
            return None
        module = self.modules[layer]
        columns = repeated_columns(self.subject.columns, self.subject.tokens, context.shape[1])
        maps = attention_columns(module.to_q(query), module.to_k(context), module.heads, columns)
        return rearrange(maps, "b (h w) -> b 1 h w", h=height)


def layer_of(extra: dict) -> Layer:
    return (*extra["block"], extra.get("block_index", 0))


class _Recorded(BaseException):
    """Everything that is wanted of a pass is there. No error, so nobody's ``except Exception`` is to catch it."""


def reference_pass(
    base: torch.nn.Module, structure: Structure, reference: Reference, kind: str, subject: Subject | None,
    sigma: float, device: torch.device,
) -> RowFeatures:
    """Runs the UNet on the reference at ``sigma`` with its own prompt and nobody else's patches.

    ``kind`` picks the positive or the negative prompt. Only the cond row has a subject map. The pass ends as soon as the last
    of all this is recorded: mostly in front of the last self-attention.
    """
    x = reference.trajectory.at(sigma).to(device)
    size = tuple(x.shape[-2:])
    maps = SubjectMaps.of(base, structure, subject, size) if kind == COND and subject else None
    levels: dict[int, torch.Tensor] = {}
    hidden: dict[Layer, torch.Tensor] = {}
    found: list[torch.Tensor] = []
    wanted_maps = len(maps.modules) if maps else 0

    def end_with_the_last() -> None:
        if (len(hidden), len(levels)) == (len(structure.self_attention), len(structure.taps)) and len(found) == wanted_maps:
            raise _Recorded

    def keep_hidden(n, context, value, extra):
        if layer_of(extra) in structure.self_attention:
            hidden[layer_of(extra)] = n.clone()
            end_with_the_last()
        return n, context, value

    def keep_map(n, context, value, extra):
        layer = layer_of(extra)
        if maps and layer in maps.modules:
            found.append(maps.read(layer, n, context, size))
            end_with_the_last()
        return n, context, value

    def keep_level(h, skip, options):
        if options["block"][1] in structure.taps:
            levels[options["block"][1]] = h.clone()
        return h, skip

    patches = {"attn1_patch": [keep_hidden], "attn2_patch": [keep_map], "output_block_patch": [keep_level]}
    with contextlib.suppress(_Recorded), uncompiled():  # dynamo gives up on frames that an exception passes
        evaluate(base, reference.positive if kind == COND else reference.negative, x, sigma, patches)
    mask = foreground(found, found[0].shape[-2:]) if found else None
    return RowFeatures(tuple(levels[number] for number in structure.taps), hidden, mask)


def evaluate(
    base: torch.nn.Module, conditioning: Conditioning, x: torch.Tensor, sigma: float, patches: dict | None = None
) -> torch.Tensor:
    """Predicted noise at ``x`` [B, C, H, W]; ``patches`` are the only ones that run."""
    if not math.isfinite(sigma) or sigma <= 0:
        raise ValueError(f"sigma: {sigma} is not above 0")
    options = {"patches": patches or {}, "cond_or_uncond": [0], "sigmas": torch.full((x.shape[0],), sigma, device=x.device)}
    clean = base.apply_model(x, options["sigmas"], **model_arguments(base, conditioning, x), transformer_options=options)
    return (x - clean) / sigma
