"""Where a UNet keeps its attention and what its batch holds: from its modules, never from block numbers of one family."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: height and width in cells
Grid = tuple[int, int]
#: kinds of rows of the guidance pair
COND, UNCOND = "cond", "uncond"
#: a row of the guidance pair: its kind, and the number of the positive prompt it belongs to
Row = tuple[str, int]
#: an attention layer: (block kind, block number, index in the block)
Layer = tuple[str, int, int]

#: how the names of the weights end that read the prompt
KEYS_AND_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")
#: decoder levels that the method works on, as in the paper
LEVELS = 2
#: cross-attention maps are read at this share of the latent's side, but not under this many cells
MAP_SHARE, MAP_MINIMUM = 4, 8


@dataclass(frozen=True)
class Structure:
    """The attention sites of one UNet. A level is a number of halvings: 0 is the latent's own grid."""

    self_attention: dict[Layer, int]  # decoder layers of the two finest levels that have any -> level
    taps: tuple[int, ...]  # output blocks whose input is a decoder feature, coarse to fine
    cross_attention: dict[Layer, int]  # all layers that read the prompt -> level
    family: str  # fingerprint: models of one family understand each other's references

    def chosen(self, names: str) -> tuple[Layer, ...]:
        """Layers by a comma-separated list of output block numbers; empty means all.

        Raises ValueError for anything that is no such number.
        """
        if not names.strip():
            return tuple(self.self_attention)
        available = sorted({number for _, number, _ in self.self_attention})
        wanted = [part.strip() for part in names.split(",") if part.strip()]
        wrong = [part for part in wanted if not part.isdigit() or int(part) not in available]
        if wrong or not wanted:
            raise ValueError(f"layers: {', '.join(wrong) or names!r} is not among this model's output blocks "
                             f"{', '.join(map(str, available))}; leave it empty for all of them")
        return tuple(layer for layer in self.self_attention if str(layer[1]) in wanted)

    def map_layers(self, latent_size: Grid) -> frozenset[Layer]:
        """Cross-attention layers whose grid is nearest a quarter of the latent's side, but not under 8 cells."""
        side = min(latent_size)
        grids = {level: min(halved(latent_size, level)) for level in self.cross_attention.values()}
        fitting = [level for level, grid in grids.items() if grid >= min(MAP_MINIMUM, side)] or [min(grids)]
        level = min(fitting, key=lambda candidate: abs(grids[candidate] - side / MAP_SHARE))
        return frozenset(layer for layer, own in self.cross_attention.items() if own == level)


def halved(size: Grid, level: int) -> Grid:
    """A grid after ``level`` stride-2 convolutions: each rounds up."""
    for _ in range(level):
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return size


def structure_of(base: Any) -> Structure:
    """The structure of the host's BaseModel. Raises ValueError when it is no UNet with attention in its decoder."""
    unet: Any = getattr(base, "diffusion_model", None)
    if not hasattr(unet, "output_blocks") or not hasattr(unet, "input_blocks"):
        found = type(base if unet is None else unet).__name__
        raise ValueError(f"model: {found} is not a UNet, and DreamMatcher works inside a UNet's self-attention; use an "
                         "SD1.x, SD2.x or SDXL checkpoint")
    cross: dict[Layer, int] = {}
    level = 0
    for number, block in enumerate(unet.input_blocks):
        level += _resamples(block, "Downsample")
        cross.update({("input", number, i): level for i in range(_depth(block))})
    cross.update({("middle", 0, i): level for i in range(_depth(unet.middle_block))})
    decoder: dict[Layer, int] = {}
    first_blocks: dict[int, int] = {}
    for number, block in enumerate(unet.output_blocks):
        first_blocks.setdefault(level, number)
        decoder.update({("output", number, i): level for i in range(_depth(block))})
        level -= _resamples(block, "Upsample")
    cross.update(decoder)
    finest = sorted(set(decoder.values()))[:LEVELS]
    if not finest:
        raise ValueError("model: this UNet has no attention in its decoder, so there is nothing to match")
    injected = {layer: own_level for layer, own_level in decoder.items() if own_level in finest}
    return Structure(
        self_attention=injected,
        taps=tuple(first_blocks[own_level] for own_level in sorted(finest, reverse=True)),
        cross_attention=cross,
        family=_family(base, len(cross)),
    )


def attention_modules(base: Any, layers: frozenset[Layer]) -> dict[Layer, Any]:
    """The cross-attention module (to_q, to_k, heads) of each layer."""
    return {layer: block.attn2 for layer, block in transformer_blocks(base, layers).items()}


def transformer_blocks(base: Any, layers: Iterable[Layer]) -> dict[Layer, Any]:
    """The block of self-attention, cross-attention and feed-forward of each layer."""
    return {layer: _transformer(_block(base.diffusion_model, layer)).transformer_blocks[layer[2]] for layer in layers}


def _block(unet: Any, layer: Layer) -> Any:
    kind, number, _ = layer
    return unet.middle_block if kind == "middle" else getattr(unet, f"{kind}_blocks")[number]


def _transformer(block: Any) -> Any:
    return next((module for module in block if hasattr(module, "transformer_blocks")), None)


def _depth(block: Any) -> int:
    transformer = _transformer(block) if block is not None else None
    return len(transformer.transformer_blocks) if transformer is not None else 0


def _resamples(block: Any, kind: str) -> bool:
    return any(type(part).__name__ == kind or type(getattr(part, "h_upd", None)).__name__ == kind for part in block)


def _family(base: Any, sites: int) -> str:
    unet = getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)  # torch.compile's wrapper holds it there
    widths = [parameter.shape[1] for name, parameter in unet.named_parameters() if name.endswith("attn2.to_k.weight")]
    return (f"{type(unet).__name__} channels={unet.in_channels}x{unet.model_channels} "
            f"context={widths[0] if widths else 0} sites={sites} prediction={base.model_type.name}")
