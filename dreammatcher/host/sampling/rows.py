"""Rows of the guidance pair, one for each chunk of a UNet call.

The host says from which conditioning entry a chunk comes (:mod:`.wrappers`, :mod:`.mid_2024`), and the entries of a run are known
since its start, so rows are known by name. What a row sees is looked at in two cases only: when it is called a second time within
one evaluation of the model, and to tell whose negative a row of an area is, where the host does not say.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

from ...backbones.base import Grid
from ...guidance_rows import COND, UNCOND, Row
from ...subject import Subject
from ..text.prompts import Encoded, Prompt, joined

PARTS = "calls that see a part of the picture (tiles, windows) are left as they are"
NAMELESS = "another pack calls the UNet without saying for which prompt; such calls are left as they are"
CHANGED = ("one evaluation of the model sees different pictures (tiles, or a pack that changes the latent between calls); what "
           "differs, and the step after it, are left as they are")


@dataclass(frozen=True)
class Assignment:
    """The row of each chunk of a call, None where it takes no part, and what to say about that."""

    rows: tuple[Row | None, ...]
    remark: str = ""
    changed: bool = False  # a row saw another picture than earlier in this evaluation


@dataclass(eq=False)
class RowBook:
    """The conditioning entries of a run, and what each row saw in the current evaluation."""

    size: Grid | None  # of the whole latent; None where the host does not tell
    subject: Subject | None = None  # with several prompts, those about it take part
    prompts: list[Prompt] = field(default_factory=list)  # the positive ones, in the host's order
    negatives: dict[Hashable, tuple | None] = field(default_factory=dict)  # name of an entry -> area that it stands in for
    lists: dict[int, str] = field(default_factory=dict)  # id of an entry of the host's -> the guider's list it stands in
    areas: bool = False  # some entry is limited to an area
    inputs: dict[Row, torch.Tensor] = field(default_factory=dict)  # row -> [B, C, H, W] that it saw first
    last: tuple[Row | None, ...] = ()  # of the last call; None also for rows that an earlier call had

    def add_positive(self, prompt: Prompt) -> None:
        self.prompts = joined([*self.prompts, prompt])
        self.areas = self.areas or prompt.area is not None

    def add_negative(self, name: Hashable, area: tuple | None) -> None:
        """An entry of any other list than the positive one; ``area`` only where it mirrors a positive entry of that area."""
        self.negatives[name] = area

    def numbers(self) -> dict[Hashable, int]:
        """Name of a positive entry -> number of its prompt."""
        return {name: number for number, prompt in enumerate(self.prompts) for name in prompt.names}

    def encoded(self, name: Hashable) -> Encoded:
        """The text of a positive entry."""
        return next((prompt.encoded[name] for prompt in self.prompts if name in prompt.encoded), Encoded(None))

    def served(self) -> list[int]:
        """Numbers of the prompts that take part: the only one, or those about the subject."""
        return [number for number, prompt in enumerate(self.prompts)
                if len(self.prompts) == 1 or prompt.is_about(self.subject)]

    def assign(self, names: Sequence[Hashable | None], inputs: Sequence[torch.Tensor]) -> Assignment:
        """Rows of the chunks of one call by the ``names`` of their entries. ``inputs`` are what they see, [B, C, H, W] each.

        Names that are not of this run are of entries that another pack encoded by itself: they count as negative prompts.
        """
        nothing = (None,) * len(names)
        if self.size is not None and tuple(inputs[0].shape[-2:]) != self.size and not self.areas:
            return Assignment(nothing, PARTS)
        if None in names:
            return Assignment(nothing, NAMELESS)
        served = self.served()
        if self.prompts and not served:
            words = f"with the words {self.subject.words!r}" if self.subject else \
                "(Mask (DreamMatcher) has no target subject to look for)"
            return Assignment(nothing, "this run has several positive prompts and none comes from Subject (DreamMatcher) "
                                       f"{words}, so nothing is matched")
        rows: list[Row | None] = [None] * len(names)
        numbers = self.numbers()
        changed = False
        for chunk, name in enumerate(names):
            if name in numbers and numbers[name] in served:
                row = (COND, numbers[name])
                same = self._sees(row, inputs[chunk])
                rows[chunk], changed = (row if same else None), changed or not same
        for chunk, name in enumerate(names):
            if name not in numbers:
                rows[chunk] = self._negative_row(served, self.negatives.get(name), inputs[chunk])
        return Assignment(tuple(rows), CHANGED if changed else "", changed)

    def _sees(self, row: Row, seen: torch.Tensor) -> bool:
        """Takes note of what a row sees. True if it saw the same before in this evaluation, or nothing."""
        before = self.inputs.setdefault(row, seen)
        return before is seen or torch.equal(before, seen)

    def _negative_row(self, served: list[int], area: tuple | None, seen: torch.Tensor) -> Row | None:
        """A negative belongs to a prompt that is served in this evaluation and covers the same part of the picture.

        Changed versions of its picture (SAG) are its own all the same: they take the match that the evaluation has.
        """
        if len(self.prompts) <= 1 and not self.areas:
            return UNCOND, 0
        candidates = [number for number in served if (COND, number) in self.inputs]
        if area is not None:
            candidates = [number for number in candidates if self.prompts[number].area == area]
        elif self.areas:
            candidates = [number for number in candidates if torch.equal(self.inputs[COND, number], seen)]
        return (UNCOND, candidates[0]) if candidates else None
