"""From the host's IMAGE and MASK to a set of pictures to learn from."""

from __future__ import annotations

import torch
from einops import rearrange

from ...training.captions import TEMPLATES, Naming, holds
from ...training.data import Example, Preparation
from ...training.sets import TrainingSet
from ..masks import mask_grid
from ..pictures import rgb, subject_mask
from .folder import pictures_of


def training_set(images: torch.Tensor | None, masks: torch.Tensor | None, identifier: str, class_word: str, template: str,
                 captions: str, folder: str, preparation: Preparation) -> TrainingSet:
    """Pictures with captions of their own, one a line or a text file beside each, or else made of a template and the subject's
    name.

    An alpha channel is a mask unless ``masks`` are given. Raises ValueError, naming the input, for pictures, masks and captions
    that do not belong together, for captions that do not hold the identifier, and when there is no picture.
    """
    naming = Naming(identifier.strip(), class_word.strip(), TEMPLATES[template])
    if images is None and not folder.strip():
        raise ValueError("images: there is none; connect pictures, or name a folder of them")
    own = [] if images is None else _connected(images, masks, captions, naming)
    found = pictures_of(folder) if folder.strip() else []
    for one in found:
        if one.caption:
            _check_caption(one.text, one.caption, naming)
        own.append(Example(one.picture, (one.caption,) if one.caption else naming.captions(), one.mask))
    return TrainingSet(tuple(own), naming, preparation)


def _connected(images: torch.Tensor, masks: torch.Tensor | None, captions: str, naming: Naming) -> list[Example]:
    pictures = rgb("images", images)
    grid = mask_grid("masks", subject_mask("images", images) if masks is None else masks)
    if grid is not None and len(grid) not in (1, len(pictures)):
        raise ValueError(f"masks: there are {len(grid)} for {len(pictures)} pictures; give one each, in the same order")
    if grid is not None and tuple(grid.shape[-2:]) != tuple(pictures.shape[1:3]):
        raise ValueError(f"masks: they are {grid.shape[-1]}x{grid.shape[-2]} pixels and the pictures "
                         f"{pictures.shape[2]}x{pictures.shape[1]}; paint them on the pictures themselves")
    own = _own_captions(captions, len(pictures), naming)
    return [Example(rearrange(picture, "h w c -> c h w").float().cpu().clone(), own[number] if own else naming.captions(),
                    None if grid is None else grid[number % len(grid)].cpu().clone())
            for number, picture in enumerate(pictures)]


def _own_captions(captions: str, count: int, naming: Naming) -> list[tuple[str, ...]]:
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    if lines and len(lines) != count:
        raise ValueError(f"captions: there are {len(lines)} lines for {count} pictures; give one line each, in the same order, "
                         "or none")
    for line in lines:
        _check_caption("captions", line, naming)
    return [(line,) for line in lines]


def _check_caption(where: str, caption: str, naming: Naming) -> None:
    if naming.identifier and not holds(caption, naming.identifier):
        raise ValueError(f"{where}: {caption!r} does not hold the identifier {naming.identifier!r}, so the word would not be "
                         "learned from it")
