"""UNets with attention (SD1.x, SD2.x, SDXL and their descendants) as a backbone.

It is read from their modules, never from block numbers of one family.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Grid, Site, sites_in

#: how the names of the weights end that read the prompt, and of those that any attention projects with
KEYS_AND_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")
PROJECTIONS = tuple(f"{attention}.{layer}.weight" for attention in ("attn1", "attn2")
                    for layer in ("to_q", "to_k", "to_v", "to_out.0"))
#: and of the layers that kohya's LoRAs change besides: in transformer blocks, around them, and in residual blocks and resizers
FEED_FORWARD = ("ff.net.0.proj.weight", "ff.net.2.weight")
AROUND_BLOCKS = ("proj_in.weight", "proj_out.weight")
CONVOLUTIONS = ("in_layers.2.weight", "out_layers.3.weight", "emb_layers.1.weight", "skip_connection.weight", ".op.weight",
                ".conv.weight")
#: how names of weights begin, by what kohya's LoRA Block Weight calls the blocks
BLOCK_NAMES = {"input_blocks": "IN", "middle_block": "M", "output_blocks": "OUT"}


def block_name(weight: str) -> str:
    """The block of a weight of the UNet, as IN04, M00 or OUT11; empty for those outside of all blocks."""
    part, number, *_ = (*weight.split("."), "")
    kind = BLOCK_NAMES.get(part, "")
    return kind and f"{kind}{0 if kind == 'M' else int(number):02}"


@dataclass(frozen=True)
class UNetBackbone:
    """The attention sites of one UNet, each with the number of times that the latent's grid is halved there."""

    self_attention: dict[Site, int]  # decoder layers of the finest grids that have any -> halvings
    taps: tuple[int, ...]  # output blocks whose input is a decoder feature, coarse to fine
    cross_attention: dict[Site, int]  # all layers that read the prompt -> halvings
    family: str
    map_share: int = 4  # subject maps are read at this share of the latent's side,
    map_minimum: int = 8  # but not under this many cells
    same_call: ClassVar[bool] = False
    padded_in_front: ClassVar[bool] = False

    @property
    def matched(self) -> tuple[Site, ...]:
        return tuple(self.self_attention)

    @property
    def readers(self) -> tuple[Site, ...]:
        return tuple(self.cross_attention)

    @property
    def coarsest(self) -> int:
        return 2 ** max(self.cross_attention.values())

    @property
    def decoder_readers(self) -> tuple[Site, ...]:
        """The last site of each output block that reads the prompt, in the order in which they run."""
        last = {number: (kind, number, index) for kind, number, index in sorted(self.cross_attention) if kind == "output"}
        return tuple(last[number] for number in sorted(last))

    def grid(self, site: Site, latent: Grid) -> Grid:
        return halved(latent, self.cross_attention[site])

    def picture_tokens(self, site: Site, latent: Grid, tokens: int) -> slice | None:
        height, width = self.grid(site, latent)
        return slice(None) if tokens == height * width else None

    def prompt_attention(self, network: Any, sites: Iterable[Site]) -> dict[Site, Any]:
        return {site: block.attn2 for site, block in transformer_blocks(network, sites).items()}

    def chosen(self, names: str) -> tuple[Site, ...]:
        return sites_in(names, self.matched, "output blocks")

    def map_sites(self, latent: Grid) -> frozenset[Site]:
        """Sites whose grid is nearest a quarter of the latent's side, but not under 8 cells."""
        side = min(latent)
        grids = {times: min(halved(latent, times)) for times in self.cross_attention.values()}
        fitting = [times for times, grid in grids.items() if grid >= min(self.map_minimum, side)] or [min(grids)]
        halvings = min(fitting, key=lambda candidate: abs(grids[candidate] - side / self.map_share))
        return frozenset(layer for layer, times in self.cross_attention.items() if times == halvings)


def halved(size: Grid, times: int) -> Grid:
    """A grid after ``times`` stride-2 convolutions: each rounds up."""
    for _ in range(times):
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return size


def backbone_of(unet: Any, prediction: str, finest: int = 2) -> UNetBackbone:
    """The sites of a UNet, of which those on the ``finest`` grids of its decoder are matched (the paper's are two).

    ``prediction`` names what it predicts, as a part of its family. Raises ValueError for one without attention in its decoder.
    """
    cross: dict[Site, int] = {}
    halvings = 0
    for number, block in enumerate(unet.input_blocks):
        halvings += _resamples(block, "Downsample")
        cross.update({("input", number, i): halvings for i in range(_depth(block))})
    cross.update({("middle", 0, i): halvings for i in range(_depth(unet.middle_block))})
    decoder: dict[Site, int] = {}
    first_blocks: dict[int, int] = {}
    for number, block in enumerate(unet.output_blocks):
        first_blocks.setdefault(halvings, number)
        decoder.update({("output", number, i): halvings for i in range(_depth(block))})
        halvings -= _resamples(block, "Upsample")
    cross.update(decoder)
    finest_halvings = sorted(set(decoder.values()))[:finest]
    if not finest_halvings:
        raise ValueError("model: this UNet has no attention in its decoder, so there is nothing to match")
    return UNetBackbone(
        self_attention={layer: times for layer, times in decoder.items() if times in finest_halvings},
        taps=tuple(first_blocks[times] for times in sorted(finest_halvings, reverse=True)),
        cross_attention=cross,
        family=_family(unet, len(cross), prediction),
    )


def transformer_blocks(unet: Any, layers: Iterable[Site]) -> dict[Site, Any]:
    """The block of self-attention, cross-attention and feed-forward of each layer."""
    return {layer: _transformer(_block(unet, layer)).transformer_blocks[layer[2]] for layer in layers}


def decoder_path(layer: Site | int) -> str:
    """The original code's name for the transformer of an output block, by a layer of it or the block's number."""
    return f"output_blocks.{layer if isinstance(layer, int) else layer[1]}.1"


#: such a name, and what stands behind it
DECODER_PATH = r"output_blocks\.(\d+)\.1\."


def _block(unet: Any, layer: Site) -> Any:
    kind, number, _ = layer
    return unet.middle_block if kind == "middle" else getattr(unet, f"{kind}_blocks")[number]


def _transformer(block: Any) -> Any:
    return next((module for module in block if hasattr(module, "transformer_blocks")), None)


def _depth(block: Any) -> int:
    transformer = _transformer(block) if block is not None else None
    return len(transformer.transformer_blocks) if transformer is not None else 0


def _resamples(block: Any, kind: str) -> bool:
    return any(type(part).__name__ == kind or type(getattr(part, "h_upd", None)).__name__ == kind for part in block)


def _family(unet: Any, sites: int, prediction: str) -> str:
    widths = [parameter.shape[1] for name, parameter in unet.named_parameters() if name.endswith("attn2.to_k.weight")]
    return (f"{type(unet).__name__} channels={unet.in_channels}x{unet.model_channels} "
            f"context={widths[0] if widths else 0} sites={sites} prediction={prediction}")
