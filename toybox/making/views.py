"""A second view of every training picture's subject: what an edit model is shown beside the picture that it learns to make."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from ..draw import render
from ..world import random_pose, random_scene
from .captions import FACTS, told
from .dataset import Picture, picture
from .material import Batch, Material


def second_view(index: int) -> Picture:
    """The subject of training picture ``index`` in another pose and another kind of scene."""
    rng, first = random.Random(f"view-{index}"), picture(index)
    scene = random_scene(rng)
    while scene.name == first.scene.name:
        scene = random_scene(rng)
    return Picture(first.subject, random_pose(rng), scene)


def drawn_view(index: int) -> np.ndarray:
    """uint8 [128, 128, 3]."""
    shown = second_view(index)
    return render(shown.subject, shown.pose, shown.scene)[0]


@dataclass(frozen=True, eq=False)
class Views:
    """Training pictures, and a second view of the subject of each."""

    pictures: Material
    second: torch.Tensor  # float16 [N, 4, 16, 16], row by row the same subject as in ``pictures``

    def draw(self, count: int) -> tuple[Batch, torch.Tensor]:
        """``count`` pictures and their second views [count, 4, 16, 16]. No caption tells colours: the view alone does."""
        rows = torch.randint(len(self.second), (count,), device=self.second.device)
        facts = told(self.pictures.facts[rows])
        facts[:, FACTS.index("colours")] = 0
        return self.pictures.shown(rows, facts), self.second[rows].float()
