"""The world of Toybox: subjects, poses, scenes and the captions that describe them.

Everything is drawn from an explicit :class:`random.Random`, so that a seed names a subject for ever.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, replace

CLASSES = ("robot", "bird", "fish", "car", "cat")

#: colour name -> (hue, saturation, value), each in 0..1
COLOURS = {
    "red": (0.995, 0.85, 0.85),
    "orange": (0.075, 0.90, 0.97),
    "yellow": (0.145, 0.85, 0.98),
    "green": (0.340, 0.75, 0.62),
    "teal": (0.490, 0.75, 0.72),
    "blue": (0.610, 0.80, 0.88),
    "purple": (0.765, 0.65, 0.70),
    "pink": (0.920, 0.42, 0.98),
    "white": (0.120, 0.04, 0.96),
    "black": (0.650, 0.12, 0.17),
}

#: scene name -> words that put a subject there
SCENES = {
    "grass": "on grass",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in the desert",
    "sky": "in the sky",
}

ROLES = ("primary", "secondary", "accent")

#: share of captions that name the two main colours, the facing and the scene
CAPTION_RATES = {"colours": 0.55, "facing": 0.50, "scene": 0.85}

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """One individual: a class and a palette. ``palette`` maps a role to an RGB colour (0..255)."""

    kind: str
    colour_names: tuple[str, str, str]
    palette: tuple[Colour, Colour, Colour]

    def colour(self, role: str) -> Colour:
        return self.palette[ROLES.index(role)]


@dataclass(frozen=True)
class Pose:
    """Place and posture of a subject. Lengths are fractions of the picture's side, angles are radians."""

    scale: float = 0.8
    rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    facing: str = "right"
    joints: tuple[float, ...] = (0.0,) * 8  # each -1..1, read by the class's drawing in its own way


@dataclass(frozen=True)
class Scene:
    """A background: its name, plus the numbers that make one instance of it."""

    name: str
    horizon: float = 0.6
    waves: tuple[float, float, float] = (0.03, 1.5, 0.0)  # height, periods, phase
    tint: tuple[float, float] = (0.0, 0.0)  # value jitter of upper and lower half


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def plain_colour(name: str) -> Colour:
    """The middle of what a colour's name covers, RGB 0..255."""
    return _rgb(*COLOURS[name])


def _jittered(name: str, rng: random.Random) -> Colour:
    hue, saturation, value = COLOURS[name]
    hue = (hue + rng.uniform(-0.018, 0.018)) % 1.0
    saturation = min(1.0, max(0.0, saturation * rng.uniform(0.88, 1.08)))
    value = min(1.0, max(0.0, value * rng.uniform(0.92, 1.03)))
    return _rgb(hue, saturation, value)


def random_subject(rng: random.Random, kind: str | None = None) -> Subject:
    """A subject with three distinct colours. ``kind`` is one of :data:`CLASSES`, or None for any."""
    if kind is not None and kind not in CLASSES:
        raise ValueError(f"kind: {kind!r} is not a Toybox class; choose one of {', '.join(CLASSES)}")
    kind = kind or rng.choice(CLASSES)
    one, two, three = rng.sample(sorted(COLOURS), 3)
    return Subject(kind, (one, two, three), (_jittered(one, rng), _jittered(two, rng), _jittered(three, rng)))


def random_pose(rng: random.Random) -> Pose:
    return Pose(
        scale=rng.uniform(0.72, 0.90),
        rotation=rng.uniform(-0.2, 0.2),
        shift=(rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)),
        facing=rng.choice(("left", "right")),
        joints=tuple(rng.uniform(-1.0, 1.0) for _ in range(8)),
    )


def random_scene(rng: random.Random, name: str | None = None) -> Scene:
    """An instance of a scene. ``name`` is one of :data:`SCENES`, or None for any."""
    if name is not None and name not in SCENES:
        raise ValueError(f"scene: {name!r} is not a Toybox scene; choose one of {', '.join(SCENES)}")
    return Scene(
        name=name or rng.choice(sorted(SCENES)),
        horizon=rng.uniform(0.48, 0.72),
        waves=(rng.uniform(0.01, 0.05), rng.uniform(0.7, 2.2), rng.uniform(0.0, 6.28)),
        tint=(rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)),
    )


def caption(subject: Subject, *, colours: bool = False, facing: str | None = None, scene: str | None = None) -> str:
    """``a photo of a [red and blue] CLASS [facing left] [on grass]``."""
    words = ["a photo of a"]
    if colours:
        words.append(f"{subject.colour_names[0]} and {subject.colour_names[1]}")
    words.append(subject.kind)
    if facing:
        words.append(f"facing {facing}")
    if scene:
        words.append(SCENES[scene])
    return " ".join(words)


def face(pose: Pose, facing: str) -> Pose:
    return replace(pose, facing=facing)


def is_held_out(subject: Subject) -> bool:
    """One palette in ten never appears in any training set: evaluation and demo subjects come from these."""
    return random.Random(f"{subject.kind}:{':'.join(subject.colour_names)}").random() < 0.1


def training_subject(rng: random.Random) -> Subject:
    while is_held_out(subject := random_subject(rng)):
        pass
    return subject


def unseen_subject(seed: int, kind: str | None = None) -> Subject:
    """The subject of a seed, always with a palette that no training picture had."""
    rng = random.Random(f"subject-{seed}-{kind}")
    while not is_held_out(subject := random_subject(rng, kind)):
        pass
    return subject
