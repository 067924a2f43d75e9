"""Makes training sets of the host's IMAGE and MASK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange

from ...texts import holds
from ...training.captions import TEMPLATES, Naming
from ...training.data import Example, Preparation
from ...training.sets import TrainingSet, together
from ..graph.masks import Masks, each_mask, mask_grid
from ..graph.notes import tell
from ..graph.pictures import Images, each, rgb, subject_mask
from .folder import pictures_of


def training_set(images: Images | None, masks: Masks | None, identifier: str, class_word: str, template: str,
                 captions: str | Sequence[str], folder: str, preparation: Preparation) -> TrainingSet:
    """Pictures with captions of their own, or else made of a template and the subject's name.

    ``captions`` are a line for each of ``images``, or a text of a list; a folder's are in a text file beside each picture.
    ``images`` and ``masks`` are a batch, or a list of them whose sizes may differ. An alpha channel is a mask unless ``masks``
    are given. Raises ValueError, naming the input, for pictures, masks and captions that do not belong together, for captions
    that do not hold the identifier, and when there is no picture.
    """
    naming = Naming(identifier.strip(), class_word.strip(), TEMPLATES[template])
    if images is None and not folder.strip():
        raise ValueError("images: there is none; connect pictures, or name a folder of them")
    examples = [] if images is None else _connected(images, masks, captions, naming)
    folder_pictures = pictures_of(folder) if folder.strip() else []
    for one in folder_pictures:
        if one.caption:
            _check_caption(one.text, one.caption, naming)
        examples.append(Example(one.picture, (one.caption,) if one.caption else naming.captions(), one.mask))
    return TrainingSet(tuple(examples), naming, preparation)


def joined_sets(sets: Mapping[str, TrainingSet | None]) -> tuple[TrainingSet, str]:
    """The sets that are connected, by their inputs, as one, and a text about it. Raises ValueError as :func:`together`."""
    connected = {name: one for name, one in sets.items() if one is not None}
    joined = together(connected)
    if not joined.parts:
        tell(f"{next(iter(connected))} alone is connected, so nothing is joined; it goes on as it is")
    return joined, joined.described()


def _connected(images: Images, masks: Masks | None, captions: str | Sequence[str], naming: Naming) -> list[Example]:
    pictures = each("images", images)
    texts = _own_captions(captions, len(pictures), naming)
    return [Example(rearrange(rgb("images", picture)[0], "h w c -> c h w").float().cpu().clone(), said,
                    None if mask is None else mask.cpu().clone())
            for picture, mask, said in zip(pictures, _own_masks(masks, pictures), texts, strict=True)]


def _own_masks(masks: Masks | None, pictures: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """A mask [1, H, W] for each of ``pictures`` [1, H, W, C]."""
    if masks is None:
        alphas = [subject_mask("images", picture) for picture in pictures]
        return [None if alpha is None else mask_grid("images", alpha)[0] for alpha in alphas]
    given = each_mask("masks", masks)
    if len(given) not in (1, len(pictures)):
        raise ValueError(f"masks: there are {len(given)} for {len(pictures)} pictures; give one each, in the same order")
    given *= len(pictures) // len(given)
    for mask, picture in zip(given, pictures):
        if tuple(mask.shape[-2:]) != tuple(picture.shape[1:3]):
            raise ValueError(f"masks: they are {mask.shape[-1]}x{mask.shape[-2]} pixels and the pictures "
                             f"{picture.shape[2]}x{picture.shape[1]}; paint them on the pictures themselves")
    return list(given)


def _own_captions(captions: str | Sequence[str], count: int, naming: Naming) -> list[tuple[str, ...]]:
    """The captions of each picture: its line of a text, or its text of a list; the template's where there is none."""
    if isinstance(captions, str):
        what, said = "lines", [line.strip() for line in captions.splitlines() if line.strip()]
    else:
        what, said = "texts", [" ".join(str(text).split()) for text in captions]
    if said and len(said) != count:
        raise ValueError(f"captions: there are {len(said)} {what} for {count} pictures; give one each, in the same order, or "
                         "none")
    for one in filter(None, said):
        _check_caption("captions", one, naming)
    return [(one,) if one else naming.captions() for one in said or [""] * count]


def _check_caption(where: str, caption: str, naming: Naming) -> None:
    if naming.identifier and not holds(caption, naming.identifier):
        raise ValueError(f"{where}: {caption!r} does not hold the identifier {naming.identifier!r}, so the word would not be "
                         "learned from it")
