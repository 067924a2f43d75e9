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
    # in float32: products of half precision are beyond its largest number before they are scaled
    probability = ((queries.float() @ keys.float()) * queries.shape[-1] ** -0.5).softmax(-1)
    # one by one: a list as an index would be copied to the device, which waits for it
    return sum(probability[..., column] for column in columns).mean(1)


def shared_attention_columns(query: torch.Tensor, key: torch.Tensor, columns: list[int]) -> torch.Tensor:
    """Attention paid to some tokens of a sequence of prompt and picture: softmax over all of it, mean over heads -> [B, N].

    ``query`` [B, heads, N, d] of the picture, ``key`` [B, heads, L, d] of the whole sequence, or of fewer heads that serve as
    many queries each. Holds [B, N, L], one head after the other.

    Raises ValueError when a column lies outside the sequence.
    """
    outside = [column for column in columns if not 0 <= column < key.shape[2]]
    if outside or not columns:
        raise ValueError(f"subject columns {list(columns)} do not fit a sequence of {key.shape[2]} tokens")
    heads, share = query.shape[1], query.shape[1] // key.shape[1]
    total = query.new_zeros(query.shape[0], query.shape[2], dtype=torch.float32)
    for head in range(heads):
        products = query[:, head].float() @ key[:, head // share].float().mT
        probability = (products * query.shape[-1] ** -0.5).softmax(-1)
        for column in columns:
            total += probability[..., column]
    return total / heads


def repeated_columns(columns: tuple[int, ...], tokens: int, context_length: int) -> list[int]:
    """Positions of ``columns`` of a prompt of ``tokens`` tokens in a context of ``context_length``.

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
    """Scales each picture's map [B, 1, H, W] from its minimum and maximum to 0..1."""
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))


def otsu(maps: torch.Tensor, bins: int = 64) -> torch.Tensor:
    """Binary maps [B, 1, H, W]: 1 above Otsu's threshold (1979) of each picture, 0 everywhere where a map is constant.

    kornia 0.9 has the same. 0.8.1 has none, and 0.8.2 spreads the bins over the whole batch and waits for the device.
    """
    values = maps.float().flatten(1)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    tiny = torch.finfo(values.dtype).tiny
    place = ((values - low) * bins / (high - low).clamp_min(tiny)).long().clamp(0, bins - 1)
    share = values.new_zeros(values.shape[0], bins).scatter_add(1, place, torch.ones_like(values)) / values.shape[1]
    below, moment = share.cumsum(1), (share * torch.arange(bins, device=maps.device)).cumsum(1)
    lower, upper = below[:, :-1], 1 - below[:, :-1]
    gap = moment[:, :-1] / lower.clamp_min(tiny) - (moment[:, -1:] - moment[:, :-1]) / upper.clamp_min(tiny)
    inside = (lower > 0) & (place.amax(1, keepdim=True) > torch.arange(bins - 1, device=maps.device))
    split = torch.where(inside, lower * upper * gap.square(), -torch.ones_like(lower)).argmax(1, keepdim=True)
    return (place > split).float().view_as(maps)
