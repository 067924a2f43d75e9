"""The loss of a training as a picture."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 640, 360, 44
PAPER, INK, FAINT, LINE = (250, 250, 248), (40, 44, 52), (200, 206, 214), (0, 90, 156)


def smoothed(losses: list[float], share: float = 0.1) -> list[float]:
    """Mean over the steps before and after that lie within ``share`` of all."""
    values, reach = torch.tensor(losses, dtype=torch.float64), max(1, round(share * len(losses) / 2))
    return [float(values[max(0, step - reach):step + reach + 1].mean()) for step in range(len(values))]


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "1 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def time_left(seconds: float) -> str:
    """A :func:`duration` that is left: "40 s left"."""
    return f"{duration(seconds)} left"


def curve(losses: list[float], steps: int, left: str = "") -> Image.Image:
    """Each step's loss in grey and its running mean in blue, over the ``steps`` that are wanted in all.

    ``left`` is said beside the loss: how long it will take yet. Single losses say little: they depend on the noise level that
    was drawn. Raises ValueError for a run without a step.
    """
    if not losses:
        raise ValueError("losses: no step was made, so there is no curve to draw")
    page = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    top = max(losses) or 1.0

    def place(step: int, value: float) -> tuple[float, float]:
        return (MARGIN + (WIDTH - 2 * MARGIN) * (step + 1) / max(steps, 2), HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top)

    draw.line([(MARGIN, MARGIN), (MARGIN, HEIGHT - MARGIN), (WIDTH - MARGIN, HEIGHT - MARGIN)], INK)
    for values, colour, width in ((losses, FAINT, 1), (smoothed(losses), LINE, 3)):
        points = [place(step, value) for step, value in enumerate(values)]
        if len(points) == 1:
            draw.ellipse([points[0][0] - 3, points[0][1] - 3, points[0][0] + 3, points[0][1] + 3], fill=colour)
        else:
            draw.line(points, colour, width)
    draw.text((MARGIN, 12), f"loss, step {len(losses)} of {steps}: {smoothed(losses)[-1]:.4f}{', ' + left if left else ''}",
              INK, font)
    draw.text((4, MARGIN - 8), f"{top:.2f}", INK, font)
    draw.text((WIDTH - MARGIN - 30, HEIGHT - MARGIN + 8), str(steps), INK, font)
    return page
