"""The subject's foreground map from cross-attention (DreamMatcher, Sec. 4.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange


def attention_columns(query: torch.Tensor, key: torch.Tensor, heads: int, columns: list[int]) -> torch.Tensor:
    """Attention paid to some text tokens: softmax over all tokens, mean over heads, summed over ``columns`` -> [B, N].

    ``query`` [B, N, heads * d], ``key`` [B, T, heads * d]. Holds [B, heads, N, T].

    Raises ValueError when a column lies outside the text.
    """
    outside = [column for column in columns if not 0 <= column < key.shape[1]]
    if outside or not columns:
        raise ValueError(f"subject columns {list(columns)} do not fit a text of {key.shape[1]} tokens")
    queries = rearrange(query, "b n (h d) -> b h n d", h=heads)
    keys = rearrange(key, "b t (h d) -> b h d t", h=heads)
    probability = ((queries @ keys).float() * queries.shape[-1] ** -0.5).softmax(-1)
    # one by one: a list as an index would be copied to the device, which waits for it
    return sum(probability[..., column] for column in columns).mean(1)


def repeated_columns(columns: tuple[int, ...], tokens: int, context_length: int) -> list[int]:
    """Where ``columns`` of a prompt of ``tokens`` tokens stand in a context of ``context_length``.

    Hosts repeat the shorter of two prompts up to a common length: every repeat counts. A length that is no multiple
    means that another pack appended tokens of its own: only the prompt at the front counts.
    """
    if context_length % tokens:
        return list(columns)
    return [start + column for start in range(0, context_length, tokens) for column in columns]


def foreground(maps: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Soft foreground [B, 1, *size] in 0..1 from the maps [B, 1, h, w] of several layers.

    Layers are averaged (at the size of the first), min-max normalised per picture and resized (nearest), as in the
    official code; never binarised. A map without contrast becomes all zero: nothing is known.
    """
    if not maps:
        raise ValueError("no cross-attention map to make a foreground from")
    grid = maps[0].shape[-2:]
    same = [m if m.shape[-2:] == grid else F.interpolate(m, size=grid, mode="bilinear", align_corners=False) for m in maps]
    mean = torch.stack(same).mean(0)
    return F.interpolate(normalise(mean), size=size, mode="nearest")


def normalise(maps: torch.Tensor) -> torch.Tensor:
    """Min-max per picture, [B, 1, H, W] -> 0..1."""
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))


def otsu(maps: torch.Tensor, bins: int = 64) -> torch.Tensor:
    """Binary maps [B, 1, H, W] by Otsu's threshold (1979), per picture. Input in 0..1."""
    from kornia.filters import otsu_threshold  # imported here: kornia takes half a second, and few graphs need it

    _, thresholds = otsu_threshold(maps.float(), nbins=bins)
    return (maps > thresholds.reshape(-1, 1, 1, 1)).float()
