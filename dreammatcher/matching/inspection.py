"""The match inspector's data: every position of one step's match, as JSON.

Values are little-endian bytes in base64, row by row over the target grid, so that a step of 64x64 positions is some 40 KB.
"""

from __future__ import annotations

import base64

import torch
from einops import rearrange

from .settings import Snapshot


def cells(snapshot: Snapshot, item: int) -> dict[str, object]:
    """The match of batch item ``item``.

    ``size`` [W, H] of the target grid; ``references`` [[w, h], ...]; ``which`` uint8, number of the reference each position
    matches; ``source`` uint32, the position there (row x w + column); ``similarity`` uint8, cosine 0..1 as 0..255;
    ``foreground`` uint8, M as 0..255; ``confident`` uint8, U as 0 or 1.
    """
    item %= snapshot.flow.shape[0]
    flows = [snapshot.flow, *(flow for flow, _ in snapshot.others)]
    sizes = [snapshot.reference_size, *(size for _, size in snapshot.others)]
    sources = torch.stack([positions(flow[item], size) for flow, size in zip(flows, sizes)])
    which = torch.zeros_like(sources[0]) if snapshot.best is None else snapshot.best[item, 0].cpu()
    share = lambda values: (values[item, 0].float().clamp(0, 1) * 255).round()  # noqa: E731
    return {
        "sigma": snapshot.sigma,
        "size": list(snapshot.flow.shape[:-3:-1]),
        "references": [[width, height] for height, width in sizes],
        "which": packed(which, torch.uint8),
        "source": packed(sources.gather(0, which[None])[0], torch.int32),
        "similarity": packed(share(snapshot.similarity), torch.uint8),
        "foreground": packed(share(snapshot.target_mask), torch.uint8),
        "confident": packed(snapshot.confidence[item, 0] > 0.5, torch.uint8),
    }


def chosen(count: int, cells_each: int, most: int = 2_000_000) -> list[int]:
    """Numbers of the steps to keep of ``count``, first and last among them, so that large pictures do not fill the disk."""
    kept = max(2, min(count, most // max(1, cells_each)))
    return sorted({round(number * (count - 1) / (kept - 1)) for number in range(kept)})


def positions(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Positions that a flow [2, H, W] leads to in a reference grid of ``size``: row x width + column, int64 [H, W]."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in flow.shape[-2:]), indexing="ij")
    x, y = (flow.float().cpu() + torch.stack((columns, rows))).round().long()
    return y.clamp(0, size[0] - 1) * size[1] + x.clamp(0, size[1] - 1)


def packed(values: torch.Tensor, dtype: torch.dtype) -> str:
    array = rearrange(values.cpu().to(dtype), "h w -> (h w)").numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")
