"""Renders a subject in a pose and a scene: the picture and its part labels."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from .shapes import PART_LABELS, PLANS
from .world import Pose, Scene, Subject

SIZE = 128
SUPERSAMPLE = 3
OUTLINE = (38, 34, 42)
WHITE = (245, 245, 240)

#: scene -> (upper top, upper bottom, lower top, lower bottom), RGB
SCENE_COLOURS = {
    "grass": ((132, 190, 235), (196, 226, 240), (116, 178, 82), (74, 132, 58)),
    "night": ((16, 18, 46), (44, 42, 88), (40, 44, 62), (22, 24, 38)),
    "snow": ((168, 184, 204), (204, 214, 226), (236, 240, 246), (208, 218, 232)),
    "desert": ((244, 196, 132), (250, 222, 170), (220, 176, 112), (188, 138, 80)),
    "sky": ((74, 142, 222), (120, 178, 238), (158, 204, 246), (214, 234, 250)),
}


def draw_scene(scene: Scene, size: int = SIZE) -> np.ndarray:
    """A two-tone gradient with a wavy horizon, uint8 [size, size, 3]."""
    upper_top, upper_bottom, lower_top, lower_bottom = (np.array(c, dtype=np.float32) for c in SCENE_COLOURS[scene.name])
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size
    height, periods, phase = scene.waves
    line = scene.horizon + height * np.sin(2 * math.pi * periods * xs + phase)
    above = np.clip((line - ys) * size + 0.5, 0, 1)[..., None]
    up = np.clip(ys / np.maximum(line, 1e-3), 0, 1)[..., None]
    down = np.clip((ys - line) / np.maximum(1 - line, 1e-3), 0, 1)[..., None]
    upper = (upper_top + (upper_bottom - upper_top) * up) * (1 + scene.tint[0])
    lower = (lower_top + (lower_bottom - lower_top) * down) * (1 + scene.tint[1])
    return np.clip(above * upper + (1 - above) * lower, 0, 255).round().astype(np.uint8)


def _place(polygon: list[tuple[float, float]], pose: Pose, size: int) -> list[tuple[float, float]]:
    half = 0.5 * pose.scale * size * 0.92
    mirror = -1.0 if pose.facing == "left" else 1.0
    cos, sin = math.cos(pose.rotation), math.sin(pose.rotation)
    centre_x, centre_y = size * (0.5 + pose.shift[0]), size * (0.5 + pose.shift[1])
    return [
        (centre_x + half * (mirror * x * cos - y * sin), centre_y + half * (mirror * x * sin + y * cos))
        for x, y in polygon
    ]


def render(subject: Subject, pose: Pose, scene: Scene, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The picture, uint8 [size, size, 3], and its labels, uint8 [size, size], indices into ``PART_LABELS``."""
    large = size * SUPERSAMPLE
    background = Image.fromarray(draw_scene(scene, size)).resize((large, large), Image.Resampling.BILINEAR)
    labels = Image.new("L", (large, large), 0)
    paint, mark = ImageDraw.Draw(background), ImageDraw.Draw(labels)
    width = max(1, round(large * 0.0085))
    for part in PLANS[subject.kind](pose.joints):
        points = _place(part.polygon, pose, large)
        colour = WHITE if part.role == "white" else subject.colour(part.role)
        paint.polygon(points, fill=colour)
        paint.line(points + [points[0], points[1]], fill=OUTLINE, width=width, joint="curve")
        mark.polygon(points, fill=PART_LABELS.index(f"{subject.kind}/{part.label}"))
    picture = background.resize((size, size), Image.Resampling.BOX)
    centre = np.asarray(labels)[SUPERSAMPLE // 2 :: SUPERSAMPLE, SUPERSAMPLE // 2 :: SUPERSAMPLE]
    return np.asarray(picture), centre
