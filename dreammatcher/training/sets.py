"""A set of pictures with their captions, as one value of the graph."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..texts import holds
from ..uncopied import Uncopied
from .captions import Naming
from .data import Encode, Example, LatentSet, Preparation, prepare
from .details import CaptionChanges
from .shelf import Shelf


@dataclass(frozen=True, eq=False)
class TrainingSet(Uncopied):
    """Pictures of a subject, or of its class; or of several ones, whose sets are its ``parts``. A copy of it is itself."""

    examples: tuple[Example, ...]
    naming: Naming
    preparation: Preparation
    changes: CaptionChanges = CaptionChanges()  # to captions each time that they are drawn
    parts: tuple[TrainingSet, ...] = ()  # sets of several subjects: ``examples`` are theirs in order, the rest is the first one's

    @property
    def subjects(self) -> tuple[TrainingSet, ...]:
        """The set of each subject."""
        return self.parts or (self,)

    @property
    def words(self) -> tuple[str, ...]:
        """The word that means each subject: its identifier, or else its class."""
        return tuple(one.naming.identifier or one.naming.class_word for one in self.subjects)

    def each(self, change: Callable[[TrainingSet], TrainingSet]) -> TrainingSet:
        """This set with a ``change`` to the set of each subject."""
        if not self.parts:
            return change(self)
        return replace(self, **_of_parts(tuple(change(one) for one in self.parts)))

    def prepared(self, encode: Encode, shelf: Shelf | None = None) -> LatentSet:
        """Latents of every picture, on the ``shelf`` beyond its room; one that comes several times is encoded once. Of several
        subjects, each is drawn equally often."""
        if self.parts:
            sets = [one.prepared(encode, shelf).examples for one in self.parts]
            owners = tuple(number for number, examples in enumerate(sets) for _ in examples)
            return LatentSet(tuple(example for examples in sets for example in examples), self.changes, owners)
        once = dict.fromkeys(self.examples)
        made = (prepare(example, self.preparation, encode) for example in once)
        latents = dict(zip(once, made if shelf is None else shelf.shelved(made), strict=True))
        return LatentSet(tuple(latents[example] for example in self.examples), self.changes)

    def joined(self, others: TrainingSet | None, repeats: int = 1) -> TrainingSet:
        """This set joined with ``others``, which come after it. Its own pictures come ``repeats`` times as often.

        Raises ValueError for others that are called by another identifier, and for those of several subjects.
        """
        if others is not None and others.parts:
            raise ValueError(f"others: it joins {len(others.parts)} subjects ({', '.join(others.words)}), and others are more "
                             "pictures of this one; connect both to Join Training Sets (DreamMatcher)")
        if others is not None and others.naming.identifier != self.naming.identifier:
            raise ValueError(f"others: their identifier is {others.naming.identifier!r} and this set's "
                             f"{self.naming.identifier!r}; one word is learned, so write the same in both")
        return replace(self, examples=self.examples * repeats + (() if others is None else others.examples))

    def same_way(self, preparation: Preparation) -> TrainingSet:
        return self.each(lambda one: replace(one, preparation=preparation))

    def called(self) -> str:
        """The subject's name in the set's captions; of several, with commas between."""
        if self.parts:
            return ", ".join(one.called() for one in self.parts)
        return self.naming.called(caption for example in dict.fromkeys(self.examples) for caption in example.captions)

    def fingerprint(self) -> str:
        """A digest that changes with every pixel, caption and choice."""
        if self.parts:
            return hashlib.sha256(json.dumps([one.fingerprint() for one in self.parts]).encode()).hexdigest()
        digest = hashlib.sha256(json.dumps([asdict(self.naming), asdict(self.preparation)]).encode())
        for example in self.examples:
            digest.update(json.dumps(example.captions).encode())
            for image in (example.picture, example.mask):
                digest.update(b"" if image is None else image.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def described(self) -> str:
        """A line for each picture: its size, the size it is learned at, and its caption."""
        if self.parts:
            head = f"{len(self.parts)} sets, each drawn equally often"
            return "\n".join([head, *(one.described() for one in self.parts)])
        times = Counter(self.examples)
        named = self.naming.subject
        lines = [f"{len(times)} pictures of {named!r}" if len(times) > 1 else f"1 picture of {named!r}"]
        for example in times:
            height, width = example.picture.shape[-2:]
            said = f"{width}x{height} at the model's own size: {example.captions[0]}"
            if self.preparation.resolution:
                rows, columns = self.preparation.size(height, width)
                said = f"{width}x{height} as {columns}x{rows}: {example.captions[0]}"
            if len(example.captions) > 1:
                said = f"{said} and {len(example.captions) - 1} more captions"
            if example.mask is not None:
                said = f"{said}, with a mask"
            lines.append(f"{said}, {times[example]} times as often" if times[example] > 1 else said)
        return "\n".join(lines)


def together(sets: Mapping[str, TrainingSet]) -> TrainingSet:
    """Sets of several subjects, or of several classes, by the inputs that they come from, as one; a single one is itself.

    Raises ValueError, naming the input, for a set without pictures, for words that are alike or of which one holds another, for
    subjects among classes, and for resolutions that differ.
    """
    named = [(where, one) for where, each in sets.items() for one in each.subjects]
    if not named:
        raise ValueError("training_set_1: no set is connected, so there is nothing to join; connect at least two")
    (first, start), *_ = named
    for number, (where, one) in enumerate(named):
        naming = one.naming
        if not one.examples:
            raise ValueError(f"{where}: it has no pictures, so there is nothing to learn; give it some, or take it away")
        if bool(naming.identifier) != bool(start.naming.identifier):
            word = naming.identifier or start.naming.identifier
            raise ValueError(f"{where}: of it and {first} one has the identifier {word!r} and the other has none, as sets of "
                             "class pictures have; join those among themselves, for the input prior_set")
        if one.preparation.resolution != start.preparation.resolution:
            raise ValueError(f"{where}: its resolution is {one.preparation.resolution} and that of {first} "
                             f"{start.preparation.resolution}; write the same in both")
        for before, other in named[:number]:
            _check_apart(where, naming, before, other.naming)
    parts = tuple(one for _, one in named)
    return parts[0] if len(parts) == 1 else TrainingSet(**_of_parts(parts))


def _check_apart(where: str, naming: Naming, before: str, other: Naming) -> None:
    """Raises ValueError where two names would mean each other's subject; a text encoder knows no capitals."""
    for one, another in ((naming, other), (other, naming)):
        word, name = (text.casefold() for text in (one.identifier, another.subject))
        if holds(name, word) or one.subject.casefold() == name:
            raise ValueError(f"{where}: its subject {naming.subject!r} shares the word {one.identifier or one.subject!r} with "
                             f"{other.subject!r} of {before}, so one would be learned as the other; give each a rare word of its "
                             "own as identifier, and join pictures of one subject by others of Training Set (DreamMatcher)")


def _of_parts(parts: tuple[TrainingSet, ...]) -> dict[str, Any]:
    """The fields of a set by its parts."""
    return {"examples": tuple(example for one in parts for example in one.examples), "naming": parts[0].naming,
            "preparation": parts[0].preparation, "parts": parts}
