"""The drawing plan of every Toybox class: parts back to front, as polygons around the origin.

Coordinates are in units of half the subject's height: x to the right, y down, the subject facing right.
A part is (label, role, polygon); role ``white`` is the same for every subject (eyes, windows).
"""

from __future__ import annotations

import math
from typing import NamedTuple

Point = tuple[float, float]


class Part(NamedTuple):
    label: str
    role: str
    polygon: list[Point]


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, points: int = 28) -> list[Point]:
    cos, sin = math.cos(turn), math.sin(turn)
    ring = [(rx * math.cos(a), ry * math.sin(a)) for a in (2 * math.pi * i / points for i in range(points))]
    return [(cx + x * cos - y * sin, cy + x * sin + y * cos) for x, y in ring]


def box(cx: float, cy: float, half_width: float, half_height: float, corner: float = 0.06) -> list[Point]:
    """A rectangle with cut corners."""
    w, h, c = half_width, half_height, corner
    outline = [(-w + c, -h), (w - c, -h), (w, -h + c), (w, h - c), (w - c, h), (-w + c, h), (-w, h - c), (-w, -h + c)]
    return [(cx + x, cy + y) for x, y in outline]


def limb(joint: Point, length: float, width: float, angle: float) -> list[Point]:
    """A bar that hangs from ``joint``; angle 0 points down, positive swings to the right."""
    sin, cos = math.sin(angle), math.cos(angle)
    half = width / 2
    corners = [(-half, -half), (half, -half), (half, length - half), (half * 0.5, length), (-half * 0.5, length),
               (-half, length - half)]
    return [(joint[0] + x * cos + y * sin, joint[1] - x * sin + y * cos) for x, y in corners]


def robot(j: tuple[float, ...]) -> list[Part]:
    lean = 0.10 * j[5]
    return [
        Part("leg", "accent", limb((-0.22, 0.45), 0.52, 0.24, 0.45 * j[0] - 0.1)),
        Part("leg", "accent", limb((0.22, 0.45), 0.52, 0.24, 0.45 * j[1] + 0.1)),
        Part("arm", "accent", limb((-0.46, -0.08), 0.58, 0.20, -0.9 + 0.8 * j[2])),
        Part("arm", "accent", limb((0.46, -0.08), 0.58, 0.20, 0.9 + 0.8 * j[3])),
        Part("body", "primary", box(0.0, 0.16, 0.44, 0.38)),
        Part("panel", "secondary", box(0.06, 0.20, 0.20, 0.15, 0.03)),
        Part("antenna", "accent", limb((lean + 0.05, -0.70), 0.30, 0.09, math.pi - 0.7 - 0.4 * j[4])),
        Part("head", "secondary", box(lean, -0.50, 0.36, 0.26)),
        Part("eye", "white", ellipse(lean + 0.02, -0.52, 0.085, 0.10)),
        Part("eye", "white", ellipse(lean + 0.24, -0.52, 0.085, 0.10)),
    ]


def bird(j: tuple[float, ...]) -> list[Part]:
    head = (0.46, -0.46 + 0.10 * j[2])
    lift = -0.25 + 0.75 * j[0]
    wing = ellipse(-0.10 - 0.34 * math.cos(lift), 0.02 - 0.40 * math.sin(lift), 0.44, 0.21, lift)
    return [
        Part("tail", "accent", [(-0.50, 0.00), (-1.00, -0.22 + 0.25 * j[1]), (-1.05, 0.10 + 0.25 * j[1]), (-0.50, 0.26)]),
        Part("leg", "accent", limb((-0.08, 0.45), 0.45, 0.12, 0.35 * j[3])),
        Part("leg", "accent", limb((0.16, 0.45), 0.45, 0.12, 0.35 * j[4])),
        Part("beak", "accent", [(head[0] + 0.20, head[1] - 0.12), (head[0] + 0.55, head[1] + 0.06),
                                (head[0] + 0.20, head[1] + 0.18)]),
        Part("body", "primary", ellipse(0.0, 0.10, 0.62, 0.42, -0.30)),
        Part("head", "secondary", ellipse(*head, 0.30, 0.28)),
        Part("wing", "secondary", wing),
        Part("eye", "white", ellipse(head[0] + 0.08, head[1] - 0.06, 0.09, 0.09)),
    ]


def fish(j: tuple[float, ...]) -> list[Part]:
    swing = 0.30 * j[0]
    face = [(0.24, -0.43), (0.50, -0.34), (0.72, -0.18), (0.84, 0.0), (0.72, 0.18), (0.50, 0.34), (0.24, 0.43), (0.38, 0.0)]
    return [
        Part("tail", "accent", [(-0.55, 0.02), (-1.05, -0.45 + swing), (-0.90, 0.02 + swing), (-1.05, 0.48 + swing)]),
        Part("fin", "accent", [(-0.32, -0.34), (-0.25 - 0.2 * j[1], -0.82), (0.30 - 0.2 * j[1], -0.70), (0.25, -0.36)]),
        Part("fin", "accent", [(-0.15, 0.36), (-0.25 + 0.2 * j[2], 0.78), (0.12 + 0.2 * j[2], 0.70), (0.18, 0.38)]),
        Part("body", "primary", ellipse(0.05, 0.0, 0.80, 0.46)),
        Part("head", "secondary", face),
        Part("flipper", "secondary", ellipse(-0.10 - 0.1 * j[4], 0.10 + 0.10 * j[3], 0.24, 0.11, 0.5 + 0.6 * j[3])),
        Part("eye", "white", ellipse(0.52, -0.10, 0.10, 0.10)),
    ]


def car(j: tuple[float, ...]) -> list[Part]:
    roof = -0.52 + 0.07 * j[0]
    back, front = -0.58 + 0.10 * j[1], 0.34 + 0.12 * j[2]
    wheel = 0.26 + 0.04 * j[3]
    rear, fore = (-0.52 + 0.06 * j[4], 0.40), (0.54 + 0.06 * j[5], 0.40)
    return [
        Part("cabin", "secondary", [(back, -0.02), (back + 0.12, roof), (front - 0.24, roof), (front, -0.02)]),
        Part("window", "white", [(back + 0.11, -0.08), (back + 0.19, roof + 0.10), (-0.16, roof + 0.10), (-0.16, -0.08)]),
        Part("window", "white", [(-0.06, -0.08), (-0.06, roof + 0.10), (front - 0.27, roof + 0.10), (front - 0.12, -0.08)]),
        Part("body", "primary", [(-0.98, 0.00), (-0.88, -0.10), (0.62, -0.10), (0.94, 0.08), (1.00, 0.38), (-0.98, 0.38)]),
        Part("bumper", "accent", box(0.90, 0.34, 0.14, 0.08, 0.03)),
        Part("wheel", "accent", ellipse(*rear, wheel, wheel)),
        Part("wheel", "accent", ellipse(*fore, wheel, wheel)),
        Part("hub", "secondary", ellipse(*rear, wheel * 0.5, wheel * 0.5)),
        Part("hub", "secondary", ellipse(*fore, wheel * 0.5, wheel * 0.5)),
    ]


def cat(j: tuple[float, ...]) -> list[Part]:
    head = (0.52 + 0.05 * j[5], -0.32 + 0.12 * j[6])
    bend = 0.6 * j[0]
    knee = (-0.62, 0.02)
    elbow = (knee[0] - 0.38 * math.cos(0.5 + bend * 0.4), knee[1] - 0.38 * math.sin(0.5 + bend * 0.4))
    tail = limb(knee, 0.42, 0.16, math.atan2(elbow[0] - knee[0], elbow[1] - knee[1]))
    tip = limb(elbow, 0.40, 0.15, math.pi + 0.8 * bend - 0.1)
    ear = lambda x, sign: [(head[0] + x - 0.13, head[1] - 0.20), (head[0] + x + 0.05 * sign, head[1] - 0.52),  # noqa: E731
                           (head[0] + x + 0.13, head[1] - 0.20)]
    return [
        Part("tail", "accent", tail),
        Part("tail", "accent", tip),
        Part("leg", "accent", limb((-0.46, 0.32), 0.50, 0.18, 0.4 * j[1])),
        Part("leg", "accent", limb((-0.22, 0.34), 0.50, 0.18, 0.4 * j[2])),
        Part("leg", "accent", limb((0.18, 0.34), 0.50, 0.18, 0.4 * j[3])),
        Part("leg", "accent", limb((0.42, 0.30), 0.50, 0.18, 0.4 * j[4])),
        Part("body", "primary", ellipse(-0.06, 0.16, 0.62, 0.32)),
        Part("ear", "secondary", ear(-0.18, -1)),
        Part("ear", "secondary", ear(0.18, 1)),
        Part("head", "primary", ellipse(*head, 0.36, 0.32)),
        Part("muzzle", "secondary", ellipse(head[0] + 0.14, head[1] + 0.13, 0.20, 0.14)),
        Part("eye", "white", ellipse(head[0] - 0.08, head[1] - 0.06, 0.08, 0.09)),
        Part("eye", "white", ellipse(head[0] + 0.16, head[1] - 0.06, 0.08, 0.09)),
    ]


PLANS = {"robot": robot, "bird": bird, "fish": fish, "car": car, "cat": cat}

#: class -> (label -> role), in drawing order
PART_ROLES = {kind: {part.label: part.role for part in plan((0.0,) * 8)} for kind, plan in PLANS.items()}

#: every (class, part) pair the judge tells apart; 0 is the background
PART_LABELS = ("background",) + tuple(f"{kind}/{label}" for kind, roles in PART_ROLES.items() for label in roles)
