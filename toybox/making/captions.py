"""Every caption of the world as token numbers, so that a training step picks captions without leaving the device."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import torch

from ..world import CAPTION_RATES, CLASSES, COLOURS, SCENES, Pose, Scene, Subject, caption

#: what a caption can tell of each fact; the first of the last three says nothing
KINDS = CLASSES
PALETTES = (None, *permutations(COLOURS, 2))
FACINGS = (None, "left", "right")
PLACES = (None, *SCENES)
ANSWERS = (KINDS, PALETTES, FACINGS, PLACES)
FACTS = ("class", "colours", "facing", "scene")


PALETTE_PLACES = {pair: place for place, pair in enumerate(PALETTES)}


def facts_of(subject: Subject, pose: Pose, scene: Scene) -> tuple[int, int, int, int]:
    """Class, two colours, facing and scene as their places in :data:`ANSWERS`."""
    return (KINDS.index(subject.kind), PALETTE_PLACES[subject.colour_names[:2]], FACINGS.index(pose.facing),
            PLACES.index(scene.name))


def told(facts: torch.Tensor) -> torch.Tensor:
    """[B, 4] facts, of which each but the class is left out (0) at the world's rates."""
    kept = torch.ones_like(facts)
    for column, name in enumerate(FACTS[1:], start=1):
        kept[:, column] = torch.rand(len(facts), device=facts.device) < CAPTION_RATES[name]
    return facts * kept


class Captions:
    """All captions by their facts, and the empty one behind them."""

    def __init__(self, tokenize: Callable, device: torch.device):
        sentences = [self.sentence(*chosen) for chosen in product(*ANSWERS)] + [""]
        rows = torch.tensor([[pair[0] for pair in tokenize(sentence)["l"][0]] for sentence in sentences])
        self.tokens = rows.to(device)
        #: where each caption's end token is: the first of the largest number
        self.ends = (rows == rows.max()).int().argmax(1).to(device)
        self.empty = len(sentences) - 1

    @staticmethod
    def sentence(kind: str, palette: tuple[str, str] | None, facing: str | None, place: str | None) -> str:
        black = (0, 0, 0)  # colours of the picture, which the caption does not read
        subject = Subject(kind, (*(palette or ("", "")), ""), (black, black, black))
        return caption(subject, colours=palette is not None, facing=facing, scene=place)

    @staticmethod
    def numbers(facts: torch.Tensor) -> torch.Tensor:
        """[B, 4] facts -> [B] captions."""
        number = torch.zeros_like(facts[:, 0])
        for column, answers in zip(facts.unbind(1), ANSWERS):
            number = number * len(answers) + column
        return number
