"""Mask of the subject in the reference: the placeholder's attention, split in two (Sec. 3.3)."""

from __future__ import annotations

import torch
from einops import rearrange

#: thresholds that are tried: 0, 0.1, ... 0.9
CANDIDATES = 10


def text_attention(query: torch.Tensor, key: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of every patch to every token, mean over the heads: [B, N, T] of query [B, N, D] and key [B, T, D]."""
    return map_of(*(rearrange(each, "b n (h d) -> b h n d", h=heads) for each in (query, key)))


def map_of(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Text attention, as :func:`text_attention`, of queries [B, H, N, d] and keys [B, H, T, d], in float32."""
    with torch.autocast(queries.device.type, enabled=False):
        return ((queries.float() @ keys.float().mT) * queries.shape[-1] ** -0.5).softmax(-1).mean(1)


def column(attention: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Attention [B, N] paid to tokens at ``places`` [B, P], the mean of a prompt's P; [B, N, T] is that to all of them."""
    chosen = places.to(attention.device)[:, None].expand(-1, attention.shape[1], -1)
    return attention.gather(2, chosen).mean(2)


def normalised(attention: torch.Tensor) -> torch.Tensor:
    """Scales maps [B, N] so that their minimum is 0 and their maximum 1.

    A constant map becomes all ones: nothing is known, so everything is seen.
    """
    low, high = attention.amin(-1, keepdim=True), attention.amax(-1, keepdim=True)
    span = high - low
    return torch.where(span > 0, (attention - low) / span.clamp_min(torch.finfo(attention.dtype).tiny), 1.0)


def threshold(values: torch.Tensor) -> torch.Tensor:
    """The coarse Otsu threshold [B] of values [B, N] in 0..1, as the authors' code finds it.

    The first of the candidates that separates two classes best (Otsu 1979); 0 when none has two classes.
    """
    thresholds = torch.arange(CANDIDATES, device=values.device) / CANDIDATES  # [K]
    low = values[:, None] < thresholds[None, :, None].to(values)  # [B, K, N]
    share = low.double().mean(-1)
    below, all_of_it = (low * values[:, None].double()).sum(-1), values.double().sum(-1, keepdim=True)
    count = values.shape[-1]
    gap = below / (share * count) - (all_of_it - below) / ((1 - share) * count)
    between = share * (1 - share) * gap.square()
    return thresholds[torch.nan_to_num(between, nan=0.0, posinf=0.0).argmax(-1)].to(values)


def subject_mask(attention: torch.Tensor) -> torch.Tensor:
    """Patches of the reference that the placeholder means, [B, N], from its attention [B, N].

    At a threshold of 0 all are seen but the least attended, as in the authors' code.
    """
    values = normalised(attention.detach().float())
    limit = threshold(values)[:, None]
    return torch.where(limit > 0, values >= limit, values > 0)
