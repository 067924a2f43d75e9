"""A bar chart of the arms' means."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

COLOURS = ((66, 103, 178), (214, 120, 50), (80, 150, 90), (150, 90, 160), (120, 120, 120))
BAR, GAP, LABEL, LENGTH = 18, 14, 190, 260


def chart(arms: dict[str, dict[str, float]]) -> Image.Image:
    """Draws a group of bars for each metric, with one bar for each arm.

    Bars go from 0 to 1, or to the largest of the arms where that is above 1. A mean that is NaN has no bar.
    """
    metrics = list(dict.fromkeys(metric for values in arms.values() for metric in values))
    font, group = ImageFont.load_default(13), 20 + BAR * len(arms) + GAP
    page = Image.new("RGB", (LABEL + LENGTH + 70, max(1, len(metrics)) * group + GAP), "white")
    draw = ImageDraw.Draw(page)
    for row, metric in enumerate(metrics):
        top = GAP + row * group
        draw.text((8, top), metric, "black", font)
        means = [values[metric] for values in arms.values() if not math.isnan(values.get(metric, math.nan))]
        full = max(1.0, *means) if means else 1.0
        for number, (name, values) in enumerate(arms.items()):
            if math.isnan(values.get(metric, math.nan)):
                continue
            y = top + 18 + number * BAR
            draw.text((16, y), name[:24], (70, 70, 70), font)
            draw.rectangle((LABEL, y + 2, LABEL + max(1, round(LENGTH * max(0.0, values[metric] / full))), y + BAR - 3),
                           fill=COLOURS[number % len(COLOURS)])
            draw.text((LABEL + LENGTH + 8, y), f"{values[metric]:.3f}", "black", font)
    return page
