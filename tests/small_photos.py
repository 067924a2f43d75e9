"""Pictures of noise, for tests that look at files and not at what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photo(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    """Writes a picture of ``size`` (height, width) and gives its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path
