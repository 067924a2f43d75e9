"""Scores the pictures of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..pictures import rgb
from .encoders import Distance, Encoder
from .metrics import alignment, diversity, fidelity, spread
from .protocols import Case
from .runner import Folder

#: case -> metric -> value
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class Scorers:
    """The encoders that score pictures. The metrics of one that is None are left out."""

    dino: Encoder | None = None
    clip: Encoder | None = None
    dino2: Encoder | None = None
    lpips: Distance | None = None

    def names(self) -> dict[str, str]:
        """Name of each metric's encoder, for reports, by metric."""
        named = {}
        if self.dino is not None:
            named |= {"DINO": self.dino.name, "PRES": self.dino.name, "DIV": self.dino.name}
        if self.dino2 is not None:
            named["DINOv2"] = self.dino2.name
        if self.clip is not None:
            named |= {"CLIP-I": self.clip.name, "CLIP-T": self.clip.name}
        return named if self.lpips is None else {**named, "DIV": self.lpips.name}


def picture(path: Path) -> torch.Tensor:
    """Reads a picture as [3, H, W] in 0..1, grey where it is transparent.

    Raises ValueError, naming the file, for one that is no picture.
    """
    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGBA"))).float() / 255
    except OSError as error:
        raise ValueError(f"{path} is damaged or no picture ({error}); delete it, and run again") from error
    return rgb(str(path), pixels[None])[0].permute(2, 0, 1)


def score(cases: list[Case], folder: Folder, by: Scorers) -> Scores:
    """Scores of every finished case: fidelity to all pictures of its subject and alignment with its prompt.

    Pictures of the class alone get PRES instead, their fidelity to the subject, and DIV, their distance from each other.
    """
    scores: Scores = {}
    by_subject: dict[str, list[Case]] = {}
    for case in cases:
        if folder.done(case):
            by_subject.setdefault(case.subject.name, []).append(case)
    for subject_cases in by_subject.values():
        results = [picture(folder.picture(case)) for case in subject_cases]
        references = [picture(path) for path in subject_cases[0].subject.pictures]
        measure = _of_class if subject_cases[0].subject.class_samples else _of_subject
        columns = measure(subject_cases, results, references, by)
        for row, case in enumerate(subject_cases):
            scores[case.key] = {name: float(values[row]) for name, values in columns.items()}
    return scores


def _of_subject(cases: list[Case], results: list[torch.Tensor], references: list[torch.Tensor],
                by: Scorers) -> dict[str, torch.Tensor]:
    columns = {name: fidelity(encoder.pictures(results), encoder.pictures(references))
               for name, encoder in (("DINO", by.dino), ("DINOv2", by.dino2)) if encoder is not None}
    if by.clip is not None:
        features = by.clip.pictures(results)
        columns["CLIP-I"] = fidelity(features, by.clip.pictures(references))
        columns["CLIP-T"] = alignment(features, by.clip.texts([case.plain_text() for case in cases]))
    return columns


def _of_class(cases: list[Case], results: list[torch.Tensor], references: list[torch.Tensor],
              by: Scorers) -> dict[str, torch.Tensor]:
    columns = {}
    if by.dino is not None:
        features = by.dino.pictures(results)
        columns["PRES"] = fidelity(features, by.dino.pictures(references))
        columns["DIV"] = torch.full((len(cases),), diversity(features))
    if by.lpips is not None:
        columns["DIV"] = torch.full((len(cases),), spread(results, by.lpips.between))
    return columns
