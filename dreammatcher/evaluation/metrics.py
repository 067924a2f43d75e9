"""The papers' measures, on features of pictures and texts: mean cosines."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

#: how pictures go into an encoder. Tables under different ones are not comparable: DreamBooth's scripts cut to the middle 224 of
#: 256 pixels and normalise as for ImageNet; ViCo's and DreamMatcher's evaluators squash to 256 and only scale to -1..1
DREAMBOOTH, VICO, CLIP = "dreambooth", "vico", "clip"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_NORM = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
#: name -> (resized to, keeps its shape, cut to, mean and deviation)
PREPARATIONS = {DREAMBOOTH: (256, True, 224, IMAGENET), VICO: (256, False, 256, HALF), CLIP: (224, True, 224, CLIP_NORM)}


def prepared(picture: torch.Tensor, how: str) -> torch.Tensor:
    """Prepares a picture [3, H, W] in 0..1 for an encoder.

    It is resized bicubically as Pillow does, cut to its middle as torchvision does, and normalised. Raises ValueError for another
    preparation than those of :data:`PREPARATIONS`.
    """
    if how not in PREPARATIONS:
        raise ValueError(f"preparation: {how!r} is unknown; choose one of {', '.join(PREPARATIONS)}")
    side, keeps, cut, (mean, deviation) = PREPARATIONS[how]
    height, width = picture.shape[-2:]
    size = (side, side)
    if keeps:  # the shorter side, the longer one rounded down
        size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    resized = _resized(picture, size)
    top, left = (round((side - cut) / 2) if keeps else 0 for side in size)
    resized = resized[:, top:top + cut, left:left + cut]
    return (resized - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def _resized(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosine of every pair of features [N, D] and [M, D], [N, M]."""
    return F.normalize(one.float(), dim=1) @ F.normalize(other.float(), dim=1).T


def fidelity(results: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each result's features [N, D] to all references' [M, D], [N]: DINO or CLIP-I (DreamBooth, Sec. 4.1)."""
    return cosines(results, references).mean(1)


def alignment(results: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Cosine of each result's features [N, D] to its own prompt's [N, D], [N]: CLIP-T."""
    return F.cosine_similarity(results.float(), texts.float(), dim=1)


def preservation(class_pictures: torch.Tensor, references: torch.Tensor) -> float:
    """PRES: DINO similarity of pictures of the class to the subject's; lower is better (DreamBooth, Sec. 4.3)."""
    return float(cosines(class_pictures, references).mean())


def diversity(features: torch.Tensor) -> float:
    """Mean distance 1 - cosine between pictures of one prompt [N, D]; 0 for one picture. DreamBooth's DIV is this with LPIPS."""
    if len(features) < 2:
        return 0.0
    similarity = cosines(features, features)
    others = ~torch.eye(len(features), dtype=torch.bool, device=similarity.device)
    return float(1 - similarity[others].mean())


def spread(pictures: list[torch.Tensor], between: Callable[[torch.Tensor, torch.Tensor], float]) -> float:
    """Mean distance ``between`` two of some pictures [3, H, W] in 0..1; 0 for one picture. DIV with LPIPS (DreamBooth, Sec. 4.3).
    """
    distances = [between(one, other) for one, other in itertools.combinations(pictures, 2)]
    return float(np.mean(distances)) if distances else 0.0
