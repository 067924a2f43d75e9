"""Scores of Toybox's judge for pictures of the graph: how far a subject's colours are from its references', class and scene."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from PIL import Image

from .judge import Judge, Verdict, load_judge, look, subject_error
from .world import CLASSES, SCENES

#: names of measures: CIEDE2000, and twice 1 or 0
ERROR, CLASS, SCENE = "subject error", "class", "scene"
NAME = ("Toybox's judge: subject error is the distance of the subject's colours to the reference's (CIEDE2000, lower is better), "
        "class and scene are shares of the pictures")
SIDE = 128

Seen = tuple[np.ndarray, Verdict]  # a picture uint8 [128, 128, 3] and the judge's reading of it


def judged_pictures(results: list[torch.Tensor], references: list[torch.Tensor], prompts: list[str]) -> dict[str, list[float]]:
    """Measure -> its value for every result. Pictures are [3, H, W] in 0..1, and each result has its own prompt.

    The subject's error is the mean over the references that show a part of the subject which the result shows too; NaN where
    none does. Class and scene are 1 where the judge sees what the prompt names, else 0, and NaN where it names none; a class
    that it does not name is the first reference's. What no result has is left out.

    Raises ValueError when the judge finds no subject in the references, and FileNotFoundError without the judge's file.
    """
    judge = load_judge()
    known = [_seen(judge, picture) for picture in references]
    scores: dict[str, list[float]] = {ERROR: [], CLASS: [], SCENE: []}
    for picture, prompt in zip(results, prompts):
        words = re.findall(r"[a-z]+", prompt.lower())
        kind = next((word for word in words if word in CLASSES), known[0][1].kind)
        scene = next((word for word in words if word in SCENES), None)
        seen = _seen(judge, picture)
        scores[ERROR].append(_error(seen, known, kind))
        scores[CLASS].append(float(seen[1].kind == kind))
        scores[SCENE].append(math.nan if scene is None else float(seen[1].scene == scene))
    return {name: values for name, values in scores.items() if not all(map(math.isnan, values))}


def _seen(judge: Judge, picture: torch.Tensor) -> Seen:
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    small = np.array(Image.fromarray(pixels).resize((SIDE, SIDE)))
    return small, look(judge, small)


def _error(result: Seen, references: list[Seen], kind: str) -> float:
    with_it = [(picture, seen.parts) for picture, seen in references if seen.kind == kind and seen.parts.any()]
    if not with_it:
        raise ValueError(f"references: Toybox's judge sees no {kind} in them; it knows Toybox's drawings alone. Give it those, "
                         "name in prompt what they show, or choose other encoders")
    errors = [subject_error(result[0], result[1].parts, *reference, kind) for reference in with_it]
    measured = [error for error in errors if error is not None]
    return float(np.mean(measured)) if measured else math.nan
