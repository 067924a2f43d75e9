"""The image-attention block and where it stands (Sec. 3.2, Fig. 3 and Table 5).

Names of parameters are those of the authors' files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..backbones.base import Site
from ..backbones.unet import decoder_path

#: how the name of a block ends in files, behind that of the transformer that it belongs to
SUFFIX = "image_cross_attention"


def sites_of(readers: Sequence[Site]) -> tuple[Site, ...]:
    """Every second of the decoder's sites that read the prompt, in their order: 8, 10, 12 and 14 of SD1's 0 to 15."""
    return tuple(readers)[1::2]


class Attention(nn.Module):
    """Multi-head attention of ``x`` to ``context``, both [B, N, D] and [B, M, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``mask`` [B, M]: keys that are false are not seen."""
        query, key, value = (rearrange(each, "b n (h d) -> b h n d", h=self.heads)
                             for each in (self.to_q(x), self.to_k(context), self.to_v(context)))
        seen = None if mask is None else mask[:, None, None]
        return self.to_out(rearrange(F.scaled_dot_product_attention(query, key, value, seen), "b h n d -> b n (h d)"))


class Gated(nn.Module):
    """GEGLU activation (Shazeer 2020)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Feed-forward layer, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class ImageAttention(nn.Module):
    """A transformer block whose cross-attention reads the reference (Eq. 3).

    It begins as torch draws its weights, not as an identity: there is no gate and no zero layer in the authors' code.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(width, heads), Attention(width, heads), FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` [B, N, D] and ``reference`` [B, M, D], both behind the frozen text block; ``mask`` [B, M] is its subject."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), reference, mask)
        return x + self.ff(self.norm3(x))


def begun(widths: Mapping[Site, tuple[int, int]], generator: torch.Generator, zero: bool = False) -> dict[Site, ImageAttention]:
    """A new block for each site, given its width and heads; weights are drawn with ``generator`` as torch's own are.

    ``zero``, which is not the authors': the last layer of each part begins at zero, so that training begins at the plain model.
    """
    blocks = {}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        for site, (width, heads) in widths.items():
            blocks[site] = ImageAttention(width, heads)
    if zero:
        for block in blocks.values():
            for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                for value in layer.parameters():
                    nn.init.zeros_(value)
    return blocks


def name_of(site: Site) -> str:
    """The name of a site's block in the authors' files."""
    return f"{decoder_path(site)}.{SUFFIX}"
