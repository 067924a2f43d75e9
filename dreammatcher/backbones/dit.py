"""Diffusion transformers (Peebles and Xie 2023) as a backbone.

All blocks share one grid: a token is a patch of the latent. Where a subject stands is told by the picture's attention to its
words, as in a UNet: in most families prompt and picture attend in one sequence, in others the prompt has attention of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from .base import Grid, Site, Tokens, sites_in

#: the kind of every site: blocks are counted through the whole network
BLOCK = "block"
#: kind that the network's code gives to the blocks behind those with a stream for each of prompt and picture
SINGLE = "single"
#: how the names of the weights end that attention projects with: Z-Image and Lumina 2, Flux and Chroma, Qwen-Image, Krea 2, Wan
_FUSED = ("linear1.weight", "linear2.weight")  # attention and feed-forward in one, in Flux's blocks with one stream
PROJECTIONS = (
    ".attention.qkv.weight", ".attention.out.weight",
    *(f".{stream}_attn.{layer}.weight" for stream in ("img", "txt") for layer in ("qkv", "proj")), *_FUSED,
    *(f".attn.{layer}.weight" for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj",
                                            "to_add_out")),
    *(f".attn.{layer}.weight" for layer in ("wq", "wk", "wv", "gate", "wo")),
    *(f".{kind}_attn.{layer}.weight" for kind in ("self", "cross") for layer in ("q", "k", "v", "o")))
#: and of the layers behind attention
FEED_FORWARD = (
    *(f".feed_forward.{layer}.weight" for layer in ("w1", "w2", "w3")),
    *(f".{stream}_mlp.{layer}.weight" for stream in ("img", "txt") for layer in ("0", "2", "net.0.proj", "net.2")), *_FUSED,
    *(f".mlp.{layer}.weight" for layer in ("gate", "up", "down")), ".ffn.0.weight", ".ffn.2.weight")



@dataclass(frozen=True)
class Beside:
    """The tokens of a sequence beside those of the picture that is made."""

    text: int  # tokens of the encoded prompt, as the network is given it
    pictures: int | None = 0  # tokens of other pictures, which an edit model looks at; None where their number is not told
    wide: int = 1  # pictures side by side in one: the rows are this many times as wide as those of the picture


class Order(Enum):
    """The place of the picture in a sequence."""

    SECOND = "prompt, picture, other pictures"
    LAST = "prompt, other pictures, picture"
    FIRST = "picture, prompt"


class Numbers(Enum):
    """Ways to know which block runs."""

    TOLD = "the network tells it in its options"
    SLOTS = "by the slots for blocks that others replace; such a network has no wrapper around itself"
    COUNTED = "one attention after the other"


@dataclass(frozen=True)
class DiTBackbone:
    """The blocks of one transformer. Descriptors are values of a block at three fifths. Values can be matched in the later half,
    and are in the last quarter: blocks before change the layout more than they add likeness (docs/measured.md)."""

    blocks: int
    patch: int  # cells of the latent on the side of one token
    family: str
    multiple: int = 1  # prompt and picture are each padded to a multiple of this many tokens
    order: Order = Order.SECOND
    joint: int = 0  # blocks in front of those of kind SINGLE
    padded_in_front: bool = False  # short prompts are made longer in front of their first token
    cross: int = 0  # heads of the attention to the prompt, in families whose sequence is the picture alone; else 0
    numbers: Numbers = Numbers.TOLD
    same_call: ClassVar[bool] = True

    @property
    def matched(self) -> tuple[Site, ...]:
        return tuple((BLOCK, number, 0) for number in range(self.blocks // 2, self.blocks))

    @property
    def taps(self) -> tuple[int, ...]:
        return (self.blocks * 3 // 5,)

    @property
    def readers(self) -> tuple[Site, ...]:
        """All blocks: each tells a part of where the words are, and the mean of them most."""
        return tuple((BLOCK, number, 0) for number in range(self.blocks))

    @property
    def coarsest(self) -> int:
        return self.patch

    def site(self, kind: str | None, index: int) -> Site:
        """The site of a block by the kind and the number that the network's code gives it."""
        return BLOCK, index + (self.joint if kind == SINGLE else 0), 0

    def grid(self, site: Site, latent: Grid) -> Grid:
        height, width = (-(-side // self.patch) for side in latent)
        return height, width

    def picture_tokens(self, site: Site, latent: Grid, tokens: int, beside: Beside | None = None) -> Tokens | None:
        """The picture's tokens, row by row; without ``beside`` all others are taken for the prompt's."""
        height, width = self.grid(site, latent)
        count = height * width
        if self.cross:
            return slice(0, count) if tokens == count else None
        if self.order is Order.FIRST:
            wide = 1 if beside is None else beside.wide
            if tokens <= count * wide or (wide > 1 and latent[1] % self.patch):
                return None
            beginnings = range(0, count * wide, width * wide)
            return slice(0, count) if wide == 1 else [first + column for first in beginnings for column in range(width)]
        if self.order is Order.LAST:
            first = tokens - self._padded(count)
            known = first if beside is None else self._padded(beside.text)
            fits = first >= known if beside and beside.pictures is None else first == known
            fits = fits and first % self.multiple == 0
        else:
            pictures = 0 if beside is None else beside.pictures
            first = tokens - count if beside is None else beside.text
            fits = pictures is not None and first + count + pictures == tokens
        return slice(first, first + count) if fits and first > 0 else None

    def prompt_tokens(self, site: Site, latent: Grid, beside: Beside) -> slice:
        """The tokens of the encoded prompt."""
        height, width = self.grid(site, latent)
        first = height * width * beside.wide if self.order is Order.FIRST else 0
        return slice(first, first + beside.text)

    def other_pictures(self, site: Site, picture: slice, tokens: int, sizes: Sequence[Grid],
                       text: int) -> tuple[slice, ...] | None:
        """The tokens of other pictures, latents of these ``sizes``, in their order; None where all together do not fit."""
        counts = [height * width for height, width in (self.grid(site, size) for size in sizes)]
        padded, last = [self._padded(count) for count in counts], self.order is Order.LAST
        first = picture.start - sum(padded) if last else picture.stop
        fits = first >= self._padded(text) if last else first + sum(counts) == tokens
        starts = [first + sum(padded[:number]) for number in range(len(counts))]
        return tuple(slice(start, start + count) for start, count in zip(starts, counts)) if fits else None

    def map_sites(self, latent: Grid) -> frozenset[Site]:
        """The blocks from the middle to four fifths, as a target's map is made again at every step."""
        return frozenset(self.readers[self.blocks // 2:max(self.blocks * 4 // 5, self.blocks // 2 + 1)])

    def prompt_attention(self, network: Any, sites: Iterable[Site]) -> dict[Site, Any]:
        return {site: Projected(self.cross) if self.cross else None for site in sites}

    def chosen(self, names: str) -> tuple[Site, ...]:
        last = tuple(site for site in self.matched if site[1] >= self.blocks * 3 // 4)
        return sites_in(names, self.matched, "matched blocks", "the last quarter of all", last)

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self.multiple) * self.multiple


@dataclass(frozen=True)
class Projected:
    """Attention to the prompt whose queries and keys are projected already."""

    heads: int

    def to_q(self, query: Any) -> Any:
        return query

    def to_k(self, key: Any) -> Any:
        return key


def next_dit(network: Any, prediction: str) -> DiTBackbone:
    """Lumina 2 and Z-Image: prompt, other pictures, picture, each padded where the network pads."""
    blocks = len(network.layers)
    return DiTBackbone(blocks, network.patch_size, _family(network, network.in_channels, network.dim, blocks, prediction),
                       multiple=getattr(network, "pad_tokens_multiple", None) or 1, order=Order.LAST)


def flux(network: Any, prediction: str) -> DiTBackbone:
    """Flux and Chroma: blocks with two streams, then blocks with one; prompt, picture, other pictures."""
    joint = len(network.double_blocks)
    blocks = joint + len(network.single_blocks)
    return DiTBackbone(blocks, network.patch_size, _family(network, network.in_channels, network.hidden_size, blocks, prediction),
                       joint=joint, padded_in_front=getattr(getattr(network, "params", None), "global_modulation", False))


def qwen_image(network: Any, prediction: str) -> DiTBackbone:
    """Qwen-Image: prompt, picture, other pictures."""
    blocks = len(network.transformer_blocks)
    return DiTBackbone(blocks, network.patch_size, _family(network, network.in_channels, network.inner_dim, blocks, prediction))


def krea(network: Any, prediction: str) -> DiTBackbone:
    """Krea 2: prompt, picture, other pictures."""
    blocks, patch = len(network.blocks), network.patch
    return DiTBackbone(blocks, patch, _family(network, network.channels, network.first.out_features, blocks, prediction, patch))


def cosmos(network: Any, prediction: str) -> DiTBackbone:
    """Cosmos-Predict2 and Anima: the picture alone, and attention to the prompt."""
    blocks, patch = len(network.blocks), network.patch_spatial
    return DiTBackbone(blocks, patch, _family(network, network.in_channels, network.model_channels, blocks, prediction, patch),
                       cross=network.blocks[0].self_attn.n_heads)


def wan(network: Any, prediction: str) -> DiTBackbone:
    """Wan for one frame: the picture alone, and attention to the prompt."""
    blocks, patch = len(network.blocks), network.patch_size[1]
    return DiTBackbone(blocks, patch, _family(network, network.in_dim, network.dim, blocks, prediction, patch),
                       cross=network.num_heads)


def mmdit(network: Any, prediction: str) -> DiTBackbone:
    """SD3 and SD3.5: prompt, picture. Some blocks of SD3.5 Medium attend to the picture alone as well, behind that."""
    blocks = len(network.joint_blocks)
    return DiTBackbone(blocks, network.patch_size, _family(network, network.in_channels, network.hidden_size, blocks, prediction),
                       numbers=Numbers.SLOTS)


def hidream(network: Any, prediction: str) -> DiTBackbone:
    """HiDream-I1, and HiDream-E1 with its source beside the picture: picture, prompt of T5, prompt of Llama for each block."""
    blocks = len(network.double_stream_blocks) + len(network.single_stream_blocks)
    channels = network.x_embedder.proj.in_features // network.patch_size ** 2
    return DiTBackbone(blocks, network.patch_size, _family(network, channels, network.inner_dim, blocks, prediction),
                       order=Order.FIRST, numbers=Numbers.COUNTED)


def _family(network: Any, channels: int, width: int, blocks: int, prediction: str, patch: int | None = None) -> str:
    return (f"{type(network).__name__} channels={channels}x{width} blocks={blocks} patch={patch or network.patch_size} "
            f"prediction={prediction}")
