"""Scores the pictures of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ..devices import accelerator
from ..pictures import rgb
from .encoders import CLIP_B32, DINO, DINO_2, Distance, Encoder, load_encoder, load_lpips
from .metrics import DREAMBOOTH, alignment, diversity, fidelity, spread
from .protocols import Case
from .runner import Folder
from .statistics import Measured, Scores


class Judge(Protocol):
    """Gives the pictures of a run their scores."""

    def __call__(self, cases: list[Case], folder: Folder, first: Folder) -> tuple[Scores, dict[str, str]]:
        """Scores of the finished cases in ``folder``, and metric -> what it is of; ``first`` is the run to compare with."""


@dataclass(frozen=True, eq=False)
class Scorers:
    """The encoders that score pictures. The metrics of one that is None are left out."""

    dino: Encoder | None = None
    clip: Encoder | None = None
    dino2: Encoder | None = None
    lpips: Distance | None = None

    def names(self) -> dict[str, str]:
        """Metric -> what it is of, for reports."""
        named: dict[str, str] = {}
        if self.dino is not None:
            named |= {"DINO": self.dino.name, "PRES": self.dino.name, "DIV": self.dino.name}
        if self.dino2 is not None:
            named["DINOv2"] = self.dino2.name
        if self.clip is not None:
            named |= {"CLIP-I": self.clip.name, "CLIP-T": self.clip.name}
        return named if self.lpips is None else {**named, "DIV": self.lpips.name}


@dataclass(frozen=True)
class EncoderJudge:
    """A :class:`Judge` of photos: encoders and LPIPS, loaded when pictures are to be scored."""

    encoders: Path | None  # a folder that holds them
    preparation: str = DREAMBOOTH  # of pictures for DINO, one of metrics.PREPARATIONS
    lpips: bool = False

    def __call__(self, cases: list[Case], folder: Folder, first: Folder) -> tuple[Scores, dict[str, str]]:
        """Raises ValueError when there is no folder of encoders, or one of them is missing in it."""
        if self.encoders is None:
            raise ValueError("encoders: none are given, so nothing is scored; give --encoders FOLDER. The pictures are kept")
        device = accelerator() or "cpu"
        second = load_encoder(self.encoders, DINO_2, self.preparation, device) if (self.encoders / DINO_2).is_dir() else None
        by = Scorers(load_encoder(self.encoders, DINO, self.preparation, device),
                     load_encoder(self.encoders, CLIP_B32, device=device), second, load_lpips(device) if self.lpips else None)
        scores = score(cases, folder, by)
        measures = {metric for row in scores.values() for metric in row}
        return scores, {metric: name for metric, name in by.names().items() if metric in measures}


def measured(name: str, cases: list[Case], folder: Folder, first: Folder, judge: Judge) -> Measured:
    """A run's scores under the ``name`` that reports call it by."""
    scores, encoders = judge(cases, folder, first)
    done = [case for case in cases if case.key in scores]
    return Measured(name, scores, {case.key: case.subject.name for case in done},
                    {case.key: folder.picture(case) for case in done}, encoders)


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
        if by.clip.texts is not None:
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
