"""A subject, pose and background by numbers, as the host's IMAGE and MASK."""

from __future__ import annotations

import random

import numpy as np
import torch

from .draw import render
from .world import random_pose, random_scene, unseen_subject


def drawn_reference(subject: int, kind: str, pose: int, background: str) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 [128, 128, 3] and numbers of its parts [128, 128] of a subject whose palette no training picture had."""
    return render(unseen_subject(subject, kind), random_pose(random.Random(f"pose-{pose}")),
                  random_scene(random.Random(f"scene-{pose}"), background))


def reference_picture(subject: int, kind: str, pose: int, background: str) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`drawn_reference` as IMAGE [1, 128, 128, 3] and MASK [1, 128, 128]."""
    picture, labels = drawn_reference(subject, kind, pose, background)
    return torch.from_numpy(np.array(picture)).float()[None] / 255, torch.from_numpy(labels > 0).float()[None]
