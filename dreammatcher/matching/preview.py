"""Pictures of a match: masks, confidence, flow, the warped reference and lines between matched points.

Colours are chosen for colour-blind readers: overlays use blue-to-yellow (cividis-like), lines use Okabe and Ito's set.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from ..pictures import INK, MARGIN, PAPER
from ..sizes import spatial_size
from .correspondence import grid_of
from .settings import Snapshot

LINE_COLOURS = ((0.902, 0.624, 0.0), (0.337, 0.706, 0.914), (0.0, 0.620, 0.451), (0.941, 0.894, 0.259),
                (0.835, 0.369, 0.0), (0.800, 0.475, 0.655))
LOW, MIDDLE, HIGH = (0.0, 0.13, 0.30), (0.49, 0.48, 0.46), (1.0, 0.91, 0.27)


def panels(snapshot: Snapshot, picture: torch.Tensor, references: list[torch.Tensor], index: int = 0) -> list[torch.Tensor]:
    """Six pictures [3, H, W] of the result's size for batch item ``index``.

    ``picture`` [3, H, W] and ``references`` [3, h, w] are in 0..1, references in the order of the match; one that is not
    given is grey. In order: first reference's foreground, target foreground, confidence, flow as a colour wheel, references
    warped onto the target, correspondence lines into the first reference.
    """
    size = spatial_size(picture)
    item = index % snapshot.flow.shape[0]
    flow = snapshot.flow[item:item + 1].float().cpu()
    mask = snapshot.target_mask[item:item + 1].float().cpu()
    sure = snapshot.confidence[item:item + 1].float().cpu()
    small = fit(references[0], size)
    own_mask = snapshot.reference_mask
    reference_panel = overlay(small, fit(own_mask[0].float().cpu(), size)[None]) if own_mask is not None else small
    return [
        reference_panel,
        overlay(picture, enlarge(mask, size)),
        overlay(picture, enlarge(sure, size)),
        enlarge(wheel(flow), size)[0],
        warped(snapshot, references, size, item),
        lines(picture, small, flow, mask * sure * taken_from(snapshot, 0, item), snapshot.reference_size),
    ]


#: what each of the panels shows
CAPTIONS = ("reference: subject", "result: subject", "trusted matches", "where it was taken from", "reference, carried over",
            "matched points")
SHEET_SIDE, COLUMN, CAPTION = 320, 270, 34  # pixels


def pixels(picture: torch.Tensor) -> Image.Image:
    """A picture [3, H, W] in 0..1 as a PIL image."""
    return Image.fromarray((rearrange(picture, "c h w -> h w c").float().cpu().clamp(0, 1) * 255).round().byte().numpy())


def sheet(shown: list[torch.Tensor]) -> Image.Image:
    """The six :func:`panels` as one PIL picture in two rows, each under its name, with the colours' legend."""
    font = ImageFont.load_default(22)
    height, width = shown[0].shape[-2:]
    factor = SHEET_SIDE / max(height, width)
    width, height = round(width * factor), round(height * factor)
    step_x, step_y = max(width, COLUMN) + MARGIN, height + CAPTION + MARGIN
    page = Image.new("RGB", (3 * step_x + MARGIN, 2 * step_y + MARGIN + CAPTION), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (panel, caption) in enumerate(zip(shown, CAPTIONS)):
        x, y = MARGIN + number % 3 * step_x, MARGIN + number // 3 * step_y
        draw.text((x, y + 3), caption, INK, font)
        how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
        page.paste(pixels(panel).resize((width, height), how), (x, y + CAPTION))
    _legend(page, draw, font, 2 * step_y + MARGIN)
    return page


def _legend(picture, draw, font, y: int) -> None:
    """Draws the legend of the overlays' and the flow's colours."""
    bar = overlay(torch.zeros(3, 16, 90), torch.linspace(0, 1, 90).expand(1, 1, 16, 90)) / 0.65
    turn = torch.linspace(0, 2 * math.pi, 90).expand(1, 16, 90)
    x = MARGIN
    for before, colours, after in (("none", bar, "all"), ("from right, below, left, above:",
                                                         wheel(torch.stack((turn.cos(), turn.sin()), 1))[0], "")):
        draw.text((x, y + 2), before, INK, font)
        x += round(draw.textlength(before, font)) + 6
        picture.paste(pixels(colours), (x, y + 8))
        x += 96
        draw.text((x, y + 2), after, INK, font)
        x += round(draw.textlength(after, font)) + 24


def taken_from(snapshot: Snapshot, number: int, item: int) -> torch.Tensor:
    """Mask [1, 1, H, W]: 1 where batch item ``item`` is matched with reference ``number``."""
    if snapshot.best is None:
        return torch.ones_like(snapshot.target_mask[item:item + 1]).float().cpu()
    return (snapshot.best[item:item + 1] == number).float().cpu()


def warped(snapshot: Snapshot, references: list[torch.Tensor], size: tuple[int, int], item: int) -> torch.Tensor:
    """The references' pixels carried to the target by the flow, dimmed where the match is not trusted: [3, *size]."""
    sources = ((snapshot.flow, snapshot.reference_size), *snapshot.others)
    pixels = torch.full((1, 3, *size), 0.5)
    for number, (flow, reference_size) in enumerate(sources):
        if number < len(references):
            from_reference = carried(flow[item:item + 1].float().cpu(), reference_size, references[number], size)
            pixels = torch.where(enlarge(taken_from(snapshot, number, item), size) > 0, from_reference, pixels)
    trust = enlarge((snapshot.target_mask[item:item + 1] * snapshot.confidence[item:item + 1]).float().cpu(), size)
    return (pixels * (0.25 + 0.75 * trust))[0]


def carried(flow: torch.Tensor, reference_size: tuple[int, int], reference: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixels [1, 3, *size] of ``reference`` [3, h, w] by ``flow`` [1, 2, H, W], which points into a grid of its size."""
    positions = flow + grid_of(flow)
    height, width = reference_size
    scale = torch.tensor((width, height), dtype=torch.float32)[None, :, None, None]
    centres = enlarge((positions + 0.5) / scale, size)  # where each target cell comes from, 0..1
    ys, xs = torch.meshgrid(*(((torch.arange(n) + 0.5) * m / n) % 1 - 0.5 for n, m in zip(size, flow.shape[-2:])), indexing="ij")
    inside = torch.stack((xs, ys))[None] / scale  # and where in the cell
    where = rearrange((centres + inside) * 2 - 1, "b d h w -> b h w d")
    return F.grid_sample(reference[None], where, padding_mode="border", align_corners=False)


def enlarge(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="nearest-exact")


def fit(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Stretches a picture [C, h, w] to ``size``."""
    return F.interpolate(picture[None], size=size, mode="bilinear", align_corners=False)[0]


def overlay(picture: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` [1, 1, H, W] in 0..1 as colour over a grey ``picture`` [3, H, W]."""
    low, middle, high = (torch.tensor(colour)[:, None, None] for colour in (LOW, MIDDLE, HIGH))
    v = values[0].clamp(0, 1)
    colour = torch.where(v < 0.5, torch.lerp(low, middle, v * 2), torch.lerp(middle, high, v * 2 - 1))
    grey = picture.mean(0, keepdim=True)
    return (0.35 * grey + 0.65 * colour).clamp(0, 1)


def wheel(flow: torch.Tensor) -> torch.Tensor:
    """Flow [B, 2, H, W] as hue (direction) and brightness (length): [B, 3, H, W]."""
    x, y = flow.unbind(1)
    hue = (torch.atan2(y, x) / (2 * math.pi)) % 1.0
    length = flow.norm(dim=1)
    value = length / length.amax((1, 2), keepdim=True).clamp_min(1e-6)
    offsets = torch.tensor((0.0, 1 / 3, 2 / 3))[None, :, None, None]
    colour = (torch.abs(((hue[:, None] - offsets) % 1.0) * 6 - 3) - 1).clamp(0, 1)
    return 1 - value[:, None] * (1 - colour)


def lines(picture: torch.Tensor, reference: torch.Tensor, flow: torch.Tensor, trust: torch.Tensor,
          reference_size: tuple[int, int], count: int = 12) -> torch.Tensor:
    """Reference and result side by side, squeezed to one picture's size, with lines between trusted matches."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[-2:]
    image = pixels(torch.cat((reference, picture), 2))
    draw = ImageDraw.Draw(image)
    rows, columns = flow.shape[-2:]
    chosen = spread(trust[0, 0], count)
    for number, (y, x) in enumerate(chosen):
        source = (x + flow[0, 0, y, x].item() + 0.5, y + flow[0, 1, y, x].item() + 0.5)
        start = (source[0] / reference_size[1] * width, source[1] / reference_size[0] * height)
        end = (width + (x + 0.5) / columns * width, (y + 0.5) / rows * height)
        colour = tuple(round(255 * part) for part in LINE_COLOURS[number % len(LINE_COLOURS)])
        draw.line((start, end), fill=colour, width=max(1, height // 170))
        for px, py in (start, end):
            radius = max(2, height // 90)
            draw.ellipse((px - radius, py - radius, px + radius, py + radius), outline=colour, width=max(1, radius // 2))
    side = image.resize((width, height // 2), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (width, height), (24, 24, 28))
    framed.paste(side, (0, (height - side.height) // 2))
    data = torch.frombuffer(bytearray(framed.tobytes()), dtype=torch.uint8)
    return rearrange(data, "(h w c) -> c h w", h=height, c=3).float() / 255


def spread(trust: torch.Tensor, count: int) -> list[tuple[int, int]]:
    """Up to ``count`` positions (row, column) with the most trust, far from one another."""
    left = trust.clone()
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in trust.shape), indexing="ij")
    apart = max(1.0, (trust.numel() / count) ** 0.5 * 0.6)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count and left.max() > 0:
        y, x = divmod(int(left.argmax()), trust.shape[1])
        chosen.append((y, x))
        left[((rows - y) ** 2 + (columns - x) ** 2).float().sqrt() <= apart] = 0
    return chosen
