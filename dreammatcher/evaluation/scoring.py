"""From the pictures of a run to its scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .encoders import Encoder
from .metrics import alignment, fidelity
from .protocols import Case
from .runner import Folder

#: case -> metric -> value
Scores = dict[str, dict[str, float]]


def picture(path: Path) -> torch.Tensor:
    """[3, H, W] in 0..1. Raises ValueError, naming the file, for one that is no picture."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    except OSError as error:
        raise ValueError(f"{path} is damaged or no picture ({error}); delete it, and run again") from error


def score(cases: list[Case], folder: Folder, dino: Encoder | None, clip: Encoder | None) -> Scores:
    """DINO, CLIP-I and CLIP-T of every finished case, against all pictures of its subject."""
    found: Scores = {}
    by_subject: dict[str, list[Case]] = {}
    for case in cases:
        if folder.done(case):
            by_subject.setdefault(case.subject.name, []).append(case)
    for own in by_subject.values():
        results = [picture(folder.picture(case)) for case in own]
        references = [picture(path) for path in own[0].subject.pictures]
        columns: dict[str, torch.Tensor] = {}
        if dino is not None:
            columns["DINO"] = fidelity(dino.pictures(results), dino.pictures(references))
        if clip is not None:
            features = clip.pictures(results)
            columns["CLIP-I"] = fidelity(features, clip.pictures(references))
            columns["CLIP-T"] = alignment(features, clip.texts([case.plain_text() for case in own]))
        for row, case in enumerate(own):
            found[case.key] = {name: float(values[row]) for name, values in columns.items()}
    return found


def names_of(dino: Encoder | None, clip: Encoder | None) -> dict[str, str]:
    """Metric -> the encoder that it is of, for reports."""
    named = {} if dino is None else {"DINO": dino.name}
    return named | ({} if clip is None else {"CLIP-I": clip.name, "CLIP-T": clip.name})
