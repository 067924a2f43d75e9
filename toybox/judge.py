"""The judge: sees which parts of which class stand where in a picture, and measures results against ground truth.

``python -m toybox.making.train_judge`` trains it.
The measures: colours by CIEDE2000 between part medians, structure by part overlap, class and scene by its two heads.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .colour import difference, lab
from .shapes import PART_LABELS, PART_ROLES
from .world import CLASSES, SCENES, plain_colour

JUDGE_FILE = Path(__file__).with_name("judge.safetensors")
SCENE_NAMES = sorted(SCENES)

#: parts smaller than this many pixels are not measured
SMALLEST_PART = 12

#: CIEDE2000 up to which a pixel is of its part's colour, and a part of the colour that a caption names
ALIKE, NAMED = 12.0, 15.0


class Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norms[0](self.first(x)))
        return x + F.relu(self.norms[1](self.second(x)))


class Judge(nn.Module):
    """A small U-shaped segmenter with a head for the class and one for the scene. Pictures [B, 3, 128, 128] in 0..1."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128)):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList([Stage(a, b) for a, b in zip((widths[0], *widths), widths)])
        self.up = nn.ModuleList([Stage(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1])])
        self.parts = nn.Conv2d(widths[0], 4 * len(PART_LABELS), 1)
        self.kind = nn.Linear(widths[-1], len(CLASSES))
        self.scene = nn.Linear(widths[-1], len(SCENE_NAMES))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of parts [B, 34, 128, 128], class [B, 5] and scene [B, 5]."""
        parts, kind, scene = self.at_half_size(pictures)
        return F.pixel_shuffle(parts, 2), kind, scene

    def at_half_size(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same with parts as [B, 34 * 4, 64, 64]: the four pixels of a 2x2 block are channels."""
        x = F.relu(self.stem(pictures * 2 - 1))
        skips: list[torch.Tensor] = []
        for stage in self.down:
            x = stage(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        deep = x.mean((2, 3))
        for stage, skip in zip(self.up, skips[-2::-1]):
            x = stage(torch.cat((F.interpolate(x, scale_factor=2.0), skip), 1))
        return self.parts(x), self.kind(deep), self.scene(deep)


@dataclass(frozen=True, eq=False)
class Verdict:
    """The judge's reading of one picture."""

    parts: np.ndarray  # uint8 [128, 128], indices into PART_LABELS
    kind: str
    scene: str


def load_judge(path: Path = JUDGE_FILE) -> Judge:
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict({name: value.float() if value.is_floating_point() else value
                           for name, value in load_file(path).items()})
    return judge.eval()


@torch.no_grad()
def look(judge: Judge, picture: np.ndarray) -> Verdict:
    """``picture`` uint8 [128, 128, 3]."""
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    parts, kind, scene = judge(x)
    return Verdict(parts.argmax(1)[0].byte().numpy(), CLASSES[kind.argmax()], SCENE_NAMES[scene.argmax()])


def part_colours(picture: np.ndarray, parts: np.ndarray, kind: str) -> dict[str, tuple[np.ndarray, int]]:
    """Median RGB (0..255) and area of every part of ``kind`` that is large enough to be measured.

    Eyes and windows, which are the same for all subjects, are left out.
    """
    colours = {}
    for label, role in PART_ROLES[kind].items():
        inside = parts == PART_LABELS.index(f"{kind}/{label}")
        if role != "white" and inside.sum() >= SMALLEST_PART:
            colours[label] = np.median(picture[inside], axis=0), int(inside.sum())
    return colours


def subject_error(picture: np.ndarray, parts: np.ndarray, reference: np.ndarray, reference_parts: np.ndarray,
                  kind: str) -> float | None:
    """Mean CIEDE2000 between the subject's parts here and in the reference, weighted by area here.

    Over parts found in both; None when there are none. Lower is better.
    """
    here, there = part_colours(picture, parts, kind), part_colours(reference, reference_parts, kind)
    shared = [label for label in here if label in there]
    if not shared:
        return None
    colours = [lab(np.array([side[label][0] for label in shared])) for side in (here, there)]
    return float(np.average(difference(*colours), weights=[here[label][1] for label in shared]))


def palette_distance(picture: np.ndarray, parts: np.ndarray, kind: str, palette: list[np.ndarray]) -> float | None:
    """Mean CIEDE2000 between the parts of the subject here, weighted by area, and the nearest of some colours (RGB, 0..255).

    None when no part is found. It tells how much of another subject's ``palette`` a picture took up.
    """
    here = part_colours(picture, parts, kind)
    if not here or not palette:
        return None
    shown, other = (lab(np.array(colours)) for colours in ([colour for colour, _ in here.values()], palette))
    nearest = difference(shown[:, None], other[None]).min(1)
    return float(np.average(nearest, weights=[area for _, area in here.values()]))


def _colour_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """CIEDE2000 between RGB colours 0..255, broadcast over all but the last dimension."""
    return difference(lab(one), lab(other))


def purity(picture: np.ndarray, parts: np.ndarray, kind: str, inset: int = 0) -> float | None:
    """Share of a part's pixels within CIEDE2000 12 of its median colour, weighted by area; None when no part is found.

    Outlines belong to parts and are not of their colour: perfect renders have 0.86. ``inset`` leaves out that many pixels
    along the borders of every part; with 1, perfect renders have 0.99.
    """
    from skimage.morphology import erosion

    shares, areas = [], []
    for label, (median, area) in part_colours(picture, parts, kind).items():
        inside = parts == PART_LABELS.index(f"{kind}/{label}")
        if inset:
            inside = erosion(inside, np.ones((2 * inset + 1, 2 * inset + 1), bool))
        if inside.any():
            shares.append((_colour_distance(picture[inside], median[None]) <= ALIKE).mean())
            areas.append(area)
    return float(np.average(shares, weights=areas)) if shares else None


def coherence(picture: np.ndarray, parts: np.ndarray, kind: str) -> float | None:
    """Mean CIEDE2000 between the median colours of parts that share a role, and so a colour; None without two such parts."""
    roles: dict[str, list[np.ndarray]] = {}
    for label, (median, _) in part_colours(picture, parts, kind).items():
        roles.setdefault(PART_ROLES[kind][label], []).append(median)
    couples = [couple for medians in roles.values() for couple in itertools.combinations(medians, 2)]
    return float(np.mean([_colour_distance(*couple) for couple in couples])) if couples else None


def colours_followed(picture: np.ndarray, parts: np.ndarray, kind: str, named: dict[str, str]) -> float | None:
    """Share of roles whose parts' mean colour is within CIEDE2000 15 of the colour that the caption names for them.

    ``named`` maps a role to a colour's name. The mean is of median colours, weighted by area. None when no such part is found.
    """
    colours = part_colours(picture, parts, kind)
    hits = []
    for role, name in named.items():
        with_role = [colours[label] for label in colours if PART_ROLES[kind][label] == role]
        if with_role:
            mean = np.average([median for median, _ in with_role], axis=0, weights=[area for _, area in with_role])
            hits.append(_colour_distance(mean, np.array(plain_colour(name))) <= NAMED)
    return float(np.mean(hits)) if hits else None
