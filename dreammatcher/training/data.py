"""Pictures to learn from: buckets of like shape, flips, masks, and latents that are made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .balance import balanced
from .details import CaptionChanges
from .ranges import check

#: pictures under this side show too little to learn from
SMALLEST = 64
#: from [B, 3, H, W] in 0..1 to latents [B, C, h, w] in the model's scale
Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Example:
    """One picture of a set. Raises ValueError for a picture that is too small or a mask of another size."""

    picture: torch.Tensor  # [3, H, W] in 0..1
    captions: tuple[str, ...]  # one is drawn each time
    mask: torch.Tensor | None = None  # [1, H, W] in 0..1, white where the subject is

    def __post_init__(self) -> None:
        size = tuple(self.picture.shape[-2:])
        if min(size) < SMALLEST:
            raise ValueError(f"pictures: one has {size[1]}x{size[0]} pixels, under {SMALLEST} on a side; give larger ones")
        if not self.captions:
            raise ValueError("captions: a picture has none; give a template, or a text file beside each picture")
        if self.mask is not None and tuple(self.mask.shape[-2:]) != size:
            raise ValueError(f"mask: it is {tuple(self.mask.shape[-2:])[::-1]} pixels and its picture {size[::-1]}; paint it on "
                             "the picture itself")


@dataclass(frozen=True)
class Preparation:
    """Settings for turning pictures into latents."""

    resolution: int = 512  # pixels; a picture's area is not more than its square; 0: that of the model, known when it learns
    step: int = 64  # sides are multiples of it
    buckets: bool = True  # keep each picture's shape; otherwise all are cut to squares
    flip: bool = False  # half of the time mirrored; not for subjects with a left and a right

    def __post_init__(self) -> None:
        check("resolution", self.resolution or SMALLEST, SMALLEST, 8192, "0 takes the model's own")
        check("step", self.step, 8, 512)
        if self.step % 8:
            raise ValueError(f"step: {self.step} is no multiple of 8, the pixels of a latent's cell")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the bucket nearest in shape to a picture, of no larger area than the resolution's square.

        Raises ValueError while the resolution is left to a model.
        """
        if not self.resolution:
            raise ValueError("resolution: it is 0, the model's own, and no model is known here; give it in pixels")
        limit = self.resolution // self.step
        if not self.buckets or limit < 2:
            return (limit * self.step,) * 2 if limit else (self.step,) * 2
        sides = range(max(1, limit // 2), 2 * limit + 1)
        fitting = [(h, w) for h in sides for w in sides if h * w <= limit * limit]
        shape = height / width

        def badness(size: tuple[int, int]) -> tuple[float, int]:
            other = size[0] / size[1]
            return round(max(shape / other, other / shape), 6), -size[0] * size[1]

        best = min(fitting, key=badness)
        return best[0] * self.step, best[1] * self.step


def fitted(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``image`` [C, H, W] scaled to cover ``size`` and cut to it around its middle."""
    import kornia  # takes half a second, which no start of the host should cost

    image = image.float()
    height, width = image.shape[-2:]
    factor = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * factor)), max(size[1], round(width * factor)))
    resized = kornia.geometry.resize(image[None], scaled, antialias=True)[0].clamp(0, 1)
    top, left = ((side - wanted) // 2 for side, wanted in zip(scaled, size))  # whole pixels: nothing is interpolated again
    return resized[:, top:top + size[0], left:left + size[1]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One example as it is learned from: its latents and its mask, as they are and, where flips are wanted, mirrored."""

    latents: torch.Tensor  # [V, C, h, w], one or two versions
    masks: torch.Tensor | None  # [V, 1, h, w] in 0..1
    captions: tuple[str, ...]


def prepare(example: Example, preparation: Preparation, encode: Encode) -> Prepared:
    """Latents of an example, made once. Raises ValueError for a mask that vanishes at the latent's size."""
    size = preparation.size(*example.picture.shape[-2:])
    versions = [fitted(example.picture, size)]
    masks = None if example.mask is None else [fitted(example.mask, size)]
    if preparation.flip:
        versions.append(versions[0].flip(-1))
        masks = masks and [*masks, masks[0].flip(-1)]
    latents = encode(torch.stack(versions))
    small = None if masks is None else F.interpolate(torch.stack(masks), size=latents.shape[-2:], mode="area")
    if small is not None and not bool((small.flatten(1).sum(1) > 0).all()):
        raise ValueError("mask: nothing of it is left after the picture was cut; paint the subject white, or turn buckets on")
    return Prepared(latents.float(), small, example.captions)


@dataclass(frozen=True, eq=False)
class Batch:
    """Latents [B, C, h, w] of one size, masks [B, 1, h, w] or None, and captions."""

    latents: torch.Tensor
    masks: torch.Tensor | None
    captions: list[str]

    def only(self, rows: torch.Tensor) -> Batch:
        """A batch of some of the rows."""
        return Batch(self.latents[rows], None if self.masks is None else self.masks[rows], self.said(rows))

    def said(self, rows: torch.Tensor) -> list[str]:
        """Captions of some rows."""
        return [self.captions[row] for row in rows.tolist()]


@dataclass(frozen=True, eq=False)
class LatentSet:
    """All latents of a training, grouped by size, and how captions change each time that they are drawn."""

    examples: tuple[Prepared, ...]
    changes: CaptionChanges = CaptionChanges()
    owners: tuple[int, ...] = ()  # number of each example's subject, where there are several: each is drawn equally often

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError("pictures: there is none; connect at least one")

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """``count`` pictures of one size. A size comes as often as there are pictures of it, those of a subject of fewer pictures
        counting more."""
        return self._batch(self._alike(count, generator), generator)

    def draw_with_references(self, count: int, generator: torch.Generator) -> tuple[Batch, torch.Tensor]:
        """Draws as :meth:`draw` does, and for each picture the latents [B, C, h, w] of another one, or its own if it is alone.

        References are of one size, which may be another than that of the pictures.
        """
        chosen = self._alike(count, generator)
        batch = self._batch(chosen, generator)
        references: list[Prepared] = []
        for one in chosen:
            others = [other for other in self.examples if other is not one
                      and (not references or _size(other) == _size(references[0]))] or [references[0] if references else one]
            references.append(others[_below(len(others), generator)])
        return batch, torch.stack([one.latents[_below(len(one.latents), generator)] for one in references])

    def _alike(self, count: int, generator: torch.Generator) -> list[Prepared]:
        if self.owners:
            sizes = [_size(one) for one in self.examples]
            return [self.examples[number] for number in balanced(sizes, self.owners, count, generator)]
        first = self.examples[_below(len(self.examples), generator)]
        alike = [one for one in self.examples if _size(one) == _size(first)]
        return [first, *(alike[_below(len(alike), generator)] for _ in range(count - 1))]

    def _batch(self, chosen: list[Prepared], generator: torch.Generator) -> Batch:
        versions = [_below(len(one.latents), generator) for one in chosen]
        captions = [one.captions[_below(len(one.captions), generator)] for one in chosen]
        captions = [changed(caption, self.changes, generator) for caption in captions]
        masks = None
        if any(one.masks is not None for one in chosen):
            masks = torch.stack([torch.ones_like(one.latents[0, :1]) if one.masks is None else one.masks[version]
                                 for one, version in zip(chosen, versions)])
        return Batch(torch.stack([one.latents[version] for one, version in zip(chosen, versions)]), masks, captions)


def changed(caption: str, changes: CaptionChanges, generator: torch.Generator) -> str:
    """A caption as it is read this time: left empty, its tags in another order, or as it is."""
    if changes.dropout and float(torch.rand(1, generator=generator)) < changes.dropout:
        return ""
    first, rest = changes.tags(caption)
    if not changes.shuffle or len(rest) < 2:
        return caption
    return ", ".join([*first, *(rest[place] for place in torch.randperm(len(rest), generator=generator).tolist())])


def _size(one: Prepared) -> torch.Size:
    return one.latents.shape[1:]


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))
