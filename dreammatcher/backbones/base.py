"""The protocol of a model family: what the methods ask of a network, whatever its blocks are.

A backbone is read from a network's modules once, and holds nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

#: height and width in cells
Grid = tuple[int, int]
#: one attention layer of a network: the kind of its block, the block's number, and the layer's index in the block
Site = tuple[str, int, int]
#: tokens among those of a sequence
Tokens = slice | list[int]
#: the number of a block whose input is a feature
Tap = int


class Backbone(Protocol):
    """The places in a network of what is matched."""

    @property
    def family(self) -> str:
        """A fingerprint: models of one family understand each other's references."""

    @property
    def matched(self) -> tuple[Site, ...]:
        """Sites whose values are matched, in the order in which they run."""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Places of the features that descriptors are made of, coarse to fine, in the order in which they run."""

    @property
    def readers(self) -> tuple[Site, ...]:
        """Sites that read the prompt."""

    @property
    def coarsest(self) -> int:
        """Cells of the latent on the side of one cell of the network's coarsest grid."""

    @property
    def padded_in_front(self) -> bool:
        """True if short prompts are made longer in front of their first token."""

    @property
    def same_call(self) -> bool:
        """True if sites behind the last tap can be matched by the features of their own call, since all of them share a grid."""

    def grid(self, site: Site, latent: Grid) -> Grid:
        """The grid of a site's picture tokens, for a latent of this size."""

    def picture_tokens(self, site: Site, latent: Grid, tokens: int) -> Tokens | None:
        """The picture's among a site's ``tokens``; None where their number does not fit the latent."""

    def map_sites(self, latent: Grid) -> frozenset[Site]:
        """Sites whose attention to the prompt makes the subject's foreground."""

    def prompt_attention(self, network: Any, sites: Iterable[Site]) -> dict[Site, Any]:
        """The modules of sites that read the prompt: ``to_q``, ``to_k`` and the number of ``heads``; None where prompt and
        picture attend in one sequence."""

    def chosen(self, names: str) -> tuple[Site, ...]:
        """Matched sites by an artist's list of block numbers; empty means all. Raises ValueError for what is none of them."""


def sites_in(names: str, sites: tuple[Site, ...], blocks: str) -> tuple[Site, ...]:
    """Those of ``sites`` whose blocks' numbers are in a comma-separated list; all for an empty one.

    Raises ValueError, naming the kind of ``blocks`` and the numbers that there are, for what is none of them.
    """
    if not names.strip():
        return sites
    available = {number for _, number, _ in sites}
    parts = [part.strip() for part in names.split(",") if part.strip()]
    wrong = [part for part in parts if not part.isdigit() or int(part) not in available]
    if wrong or not parts:
        raise ValueError(f"layers: {(', '.join(wrong) or names)!r} is not among this model's {blocks} "
                         f"{', '.join(map(str, sorted(available)))}; leave it empty for all of them")
    wanted = set(map(int, parts))
    return tuple(site for site in sites if site[1] in wanted)
