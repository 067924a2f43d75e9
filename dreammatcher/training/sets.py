"""A set of pictures with their captions, as one value of the graph."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from .captions import Naming
from .data import Encode, Example, LatentSet, Preparation, prepare


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Pictures of a subject, or of its class. A copy of it is itself."""

    examples: tuple[Example, ...]
    naming: Naming
    preparation: Preparation

    def __deepcopy__(self, memo: dict) -> TrainingSet:
        return self

    def prepared(self, encode: Encode) -> LatentSet:
        return LatentSet(tuple(prepare(example, self.preparation, encode) for example in self.examples))

    def same_way(self, preparation: Preparation) -> TrainingSet:
        return replace(self, preparation=preparation)

    def fingerprint(self) -> str:
        """Changes with every pixel, caption and choice."""
        digest = hashlib.sha256(json.dumps([asdict(self.naming), asdict(self.preparation)]).encode())
        for example in self.examples:
            digest.update(json.dumps(example.captions).encode())
            for image in (example.picture, example.mask):
                digest.update(b"" if image is None else image.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def described(self) -> str:
        """A line for each picture: its size, the size it is learned at, and its caption."""
        count = len(self.examples)
        lines = [f"{count} picture{'s' if count > 1 else ''} of {self.naming.subject!r}"]
        for example in self.examples:
            height, width = example.picture.shape[-2:]
            rows, columns = self.preparation.size(height, width)
            more = f" and {len(example.captions) - 1} more captions" if len(example.captions) > 1 else ""
            lines.append(f"{width}x{height} as {columns}x{rows}: {example.captions[0]}{more}"
                         f"{', with a mask' if example.mask is not None else ''}")
        return "\n".join(lines)
