"""The visible difference of two colours, CIEDE2000, with what every ComfyUI has."""

from __future__ import annotations

import numpy as np


def lab(colours: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB colours 0..255, [..., 3] as [..., 3]."""
    import torch
    from kornia.color import rgb_to_lab

    given = np.asarray(colours, dtype=np.float64) / 255
    planes = torch.from_numpy(given.reshape(-1, 3).T.copy())[None, :, :, None]  # kornia reads pictures [B, 3, H, W]
    return rgb_to_lab(planes)[0, :, :, 0].numpy().T.reshape(given.shape)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """CIEDE2000 between CIELAB colours [..., 3], broadcast over all but the last dimension.

    The formula is that of G. Sharma, W. Wu, E. N. Dalal (2005), with all three parametric factors 1.
    """
    (lightness, a, b), (other_lightness, other_a, other_b) = (np.moveaxis(np.asarray(each, dtype=np.float64), -1, 0)
                                                              for each in (one, other))
    widened = 1.5 - 0.5 * _of_chroma((np.hypot(a, b) + np.hypot(other_a, other_b)) / 2)
    chroma, other_chroma = np.hypot(widened * a, b), np.hypot(widened * other_a, other_b)
    hue, other_hue = (np.arctan2(y, widened * x) % (2 * np.pi) for x, y in ((a, b), (other_a, other_b)))
    grey = chroma * other_chroma == 0  # a grey has no hue
    turn = np.where(grey, 0, (other_hue - hue + np.pi) % (2 * np.pi) - np.pi)
    mean_hue = np.where(grey, hue + other_hue, hue + turn / 2) % (2 * np.pi)
    mean_lightness, mean_chroma = (lightness + other_lightness) / 2, (chroma + other_chroma) / 2
    shape = 1 - 0.17 * np.cos(mean_hue - np.radians(30)) + 0.24 * np.cos(2 * mean_hue) \
        + 0.32 * np.cos(3 * mean_hue + np.radians(6)) - 0.20 * np.cos(4 * mean_hue - np.radians(63))
    by_lightness = (other_lightness - lightness) / (1 + 0.015 * (mean_lightness - 50) ** 2
                                                    / np.sqrt(20 + (mean_lightness - 50) ** 2))
    by_chroma = (other_chroma - chroma) / (1 + 0.045 * mean_chroma)
    by_hue = 2 * np.sqrt(chroma * other_chroma) * np.sin(turn / 2) / (1 + 0.015 * mean_chroma * shape)
    blue = np.radians(60) * np.exp(-((np.degrees(mean_hue) - 275) / 25) ** 2)
    rotation = -2 * _of_chroma(mean_chroma) * np.sin(blue)
    return np.sqrt(np.maximum(by_lightness ** 2 + by_chroma ** 2 + by_hue ** 2 + rotation * by_chroma * by_hue, 0))


def _of_chroma(chroma: np.ndarray) -> np.ndarray:
    return np.sqrt(chroma ** 7 / (chroma ** 7 + 25.0 ** 7))
