"""A set of pictures with their captions, as one value of the graph."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace

from ..uncopied import Uncopied
from .captions import Naming
from .data import Encode, Example, LatentSet, Preparation, prepare
from .details import CaptionChanges


@dataclass(frozen=True, eq=False)
class TrainingSet(Uncopied):
    """Pictures of a subject, or of its class. A copy of it is itself."""

    examples: tuple[Example, ...]
    naming: Naming
    preparation: Preparation
    changes: CaptionChanges = CaptionChanges()  # to captions each time that they are drawn

    def prepared(self, encode: Encode) -> LatentSet:
        """Latents of every picture; one that comes several times is encoded once."""
        latents = {example: prepare(example, self.preparation, encode) for example in dict.fromkeys(self.examples)}
        return LatentSet(tuple(latents[example] for example in self.examples), self.changes)

    def joined(self, others: TrainingSet | None, repeats: int = 1) -> TrainingSet:
        """This set joined with ``others``, which come after it. Its own pictures come ``repeats`` times as often.

        Raises ValueError for others that are called by another identifier.
        """
        if others is not None and others.naming.identifier != self.naming.identifier:
            raise ValueError(f"others: their identifier is {others.naming.identifier!r} and this set's "
                             f"{self.naming.identifier!r}; one word is learned, so write the same in both")
        return replace(self, examples=self.examples * repeats + (() if others is None else others.examples))

    def same_way(self, preparation: Preparation) -> TrainingSet:
        return replace(self, preparation=preparation)

    def called(self) -> str:
        """The subject's name in the set's captions."""
        return self.naming.called(caption for example in dict.fromkeys(self.examples) for caption in example.captions)

    def fingerprint(self) -> str:
        """A digest that changes with every pixel, caption and choice."""
        digest = hashlib.sha256(json.dumps([asdict(self.naming), asdict(self.preparation)]).encode())
        for example in self.examples:
            digest.update(json.dumps(example.captions).encode())
            for image in (example.picture, example.mask):
                digest.update(b"" if image is None else image.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def described(self) -> str:
        """A line for each picture: its size, the size it is learned at, and its caption."""
        times = Counter(self.examples)
        lines = [f"{len(times)} picture{'s' if len(times) > 1 else ''} of {self.naming.subject!r}"]
        for example in times:
            height, width = example.picture.shape[-2:]
            size = "at the model's own size"
            if self.preparation.resolution:
                rows, columns = self.preparation.size(height, width)
                size = f"as {columns}x{rows}"
            more = f" and {len(example.captions) - 1} more captions" if len(example.captions) > 1 else ""
            lines.append(f"{width}x{height} {size}: {example.captions[0]}{more}"
                         f"{', with a mask' if example.mask is not None else ''}"
                         f"{f', {times[example]} times as often' if times[example] > 1 else ''}")
        return "\n".join(lines)
