"""python -m docs.match_two_pictures REFERENCE TARGET OUT carries the reference's pixels to where the target shows the same."""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dreammatcher.matching.correspondence import confidence, match
from dreammatcher.matching.preview import carried, enlarge


def features(x: torch.Tensor) -> torch.Tensor:  # [1, 27, H / 4, W / 4]; in earnest those of DINO or of a diffusion model
    cells = F.avg_pool2d(x - x.mean((2, 3), keepdim=True), 4)
    return F.unfold(cells, 3, padding=1).unflatten(2, cells.shape[-2:])  # the colours of each cell and its neighbours


reference, target = (torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
                     for path in sys.argv[1:3])  # [1, 3, H, W] in 0..1
found = match(features(reference), features(target))  # nearest neighbours by cosine, there and back (Eq. 5)
trust = confidence(found, torch.ones(1, 1, *found.target_size), threshold=0.05)  # the way back ends where it began (Eq. 8)
warped = carried(found.flow, found.reference_size, reference[0], target.shape[-2:])
blended = torch.lerp(target, warped, enlarge(trust, target.shape[-2:]))  # Eq. 7, on pixels instead of values
Image.fromarray((blended[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(sys.argv[3])
