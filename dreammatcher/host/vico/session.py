"""One ViCo Apply while a model samples: what its sites see of the reference, and how they change the picture's states.

What is seen depends on the noise level and the prompt and not on the picture, so it is one pass of the network for each, and kept
for every picture of the batch and for the next seeds. The pass runs at the reference's own size; nobody else's patches run in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange

from ...attention import repeated_columns
from ...backbones.base import Backbone, Site
from ...finite import REMEDY, finite
from ...guidance_rows import COND, Row
from ...sizes import spatial_size
from ...store import RunStore
from ...subject import Conditioning, Subject
from ...uncopied import Uncopied
from ...vico.block import ImageAttention
from ...vico.mask import column, subject_mask
from ...vico.settings import LookSettings, LookTrace
from ..model.blocks import Blocks, blocks_at
from ..model.capture import ode_derivative
from ..model.compiling import uncompiled
from ..sampling.rows import RowBook
from ..sampling.session import Session
from .sites import look

WHOLE = ("the prompt does not say where its subject's word stands, so all of the reference is looked at; encode it with "
         "Subject (DreamMatcher), or connect its subject to ViCo Apply (DreamMatcher)")


@dataclass(frozen=True, eq=False)
class Remembered:
    """The sites' view of the references at one noise level, for one prompt."""

    states: dict[Site, torch.Tensor]  # [1 or B, M, D], all pictures of the reference end to end
    masks: dict[Site, torch.Tensor]  # [1 or B, M], true where the subject is

    def to(self, device: torch.device | str) -> Remembered:
        return Remembered({site: value.to(device) for site, value in self.states.items()},
                          {site: value.to(device) for site, value in self.masks.items()})

    def bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in (*self.states.values(), *self.masks.values()))


@dataclass(frozen=True, eq=False)
class VicoPlan(Uncopied):
    """One ViCo Apply. A copy of it is itself."""

    backbone: Backbone
    blocks: dict[Site, ImageAttention]  # in main memory
    reference: torch.Tensor  # [R, C, h, w] in the model's scale
    settings: LookSettings
    subject: Subject | None  # for prompts that carry none of their own
    trace: LookTrace
    store: RunStore = field(default_factory=RunStore)


@dataclass(eq=False)
class LookingRows(RowBook):
    """Rows of a method for which a part of a picture is as good as the whole."""

    def served(self) -> list[int]:
        """Prompts that carry the mark of the subject; all of them where none does."""
        marked = [number for number, prompt in enumerate(self.prompts)
                  if prompt.subject is not None and (self.subject is None or prompt.is_about(self.subject))]
        return marked or list(range(len(self.prompts)))

    def _sees(self, row: Row, seen: torch.Tensor) -> bool:
        self.inputs.setdefault(row, seen)
        return True


@dataclass(eq=False)
class VicoSession(Session):
    """A sampling session of one plan."""

    plan: VicoPlan = field(kw_only=True)
    network: str = field(kw_only=True)  # identity of what the model's network computes
    room: int = field(kw_only=True)  # bytes that the store may fill
    moved: dict[Site, ImageAttention] = field(default_factory=dict)  # the blocks where and as the model computes
    prompts: dict[Hashable, str] = field(default_factory=dict)  # entry -> what tells its encoded text from others
    current: dict[tuple, Remembered] = field(default_factory=dict)  # of the last noise level, on the device

    @property
    def sites(self) -> Blocks:
        return blocks_at(self.base, self.plan.blocks)

    def remembered(self, row: Row, name: Hashable, context: torch.Tensor, sigma: float) -> Remembered:
        """The sites' view for a chunk whose prompt is ``context`` [B, T, C], kept or made anew."""
        if name not in self.prompts:
            self.prompts[name] = hashlib.sha256(context.detach().float().cpu().numpy().tobytes()).hexdigest()
        columns = self._columns(row, name, context.shape[1])
        key = (self.network, self.prompts[name], len(context), sigma, tuple(columns))
        if key not in self.current:
            self.current = {other: value for other, value in self.current.items() if other[3] == sigma}
            kept = self.plan.store.find(key)
            if kept is None:
                remembered = self._look(context, sigma, columns)
                if self.plan.store.make_room(remembered.bytes(), self.room):
                    self.plan.store.keep(key, remembered.to("cpu"))
                self.current[key] = remembered
            else:
                self.current[key] = kept.to(context.device)
        if row[0] == COND and sigma not in self.plan.trace.masks:
            self._record(sigma, self.current[key])
        return self.current[key]

    def _columns(self, row: Row, name: Hashable, length: int) -> list[int]:
        """The columns of the word in a context of ``length``.

        A negative prompt is read at the same place, as in the authors' code.
        """
        prompt = self.rows.prompts[row[1]] if self.rows.prompts else None
        subject = (prompt.subject if prompt else None) or self.plan.subject
        place = None if subject is None else subject if prompt is None else \
            self.place(name if name in prompt.names else prompt.names[0], subject)
        if place is None:
            return []
        if row[0] == COND:
            return repeated_columns(place.columns, place.tokens, length)
        return sorted({column % length for column in repeated_columns(place.columns, place.tokens, length)})

    def _look(self, context: torch.Tensor, sigma: float, columns: list[int]) -> Remembered:
        """A pass for each picture of the reference; one prompt is enough where all of a batch are the same."""
        base, alike = self.base, bool((context == context[:1]).all())
        text = Conditioning(context[:1] if alike else context)
        states: dict[Site, list[torch.Tensor]] = {site: [] for site in self.plan.blocks}
        masks: dict[Site, list[torch.Tensor]] = {site: [] for site in self.plan.blocks}
        for picture in self.plan.reference:
            clean = picture[None].to(context.device).expand(len(text.cross_attention), -1, -1, -1)
            sigmas = torch.full((1,), sigma, device=clean.device)
            scaled = clean / base.model_sampling.calculate_input(sigmas, torch.ones_like(clean))
            with uncompiled():  # dynamo gives up on frames that an exception passes
                seen = look(self.sites, partial(ode_derivative, base, text, scaled, sigma))
            if not all(finite(one.states) for one in seen.values()):
                raise ValueError(f"model: what it makes of the reference at sigma {sigma:.3g} holds NaN or infinity; {REMEDY}")
            for site, one in seen.items():
                states[site].append(one.states)
                masks[site].append(self._mask(one.attention, columns))
        return Remembered({site: torch.cat(values, 1) for site, values in states.items()},
                          {site: torch.cat(values, 1) for site, values in masks.items()})

    def _mask(self, attention: torch.Tensor, columns: list[int]) -> torch.Tensor:
        if not columns:
            self.skip(WHOLE)
            return torch.ones(attention.shape[:2], dtype=torch.bool, device=attention.device)
        places = torch.tensor([columns]).expand(len(attention), -1)
        return subject_mask(column(attention, places))

    def _record(self, sigma: float, seen: Remembered) -> None:
        size = spatial_size(self.plan.reference)
        first = {}
        for site, mask in seen.masks.items():
            height, width = self.plan.backbone.grid(site, size)
            first[site] = rearrange(mask[0, :height * width], "(h w) -> h w", h=height).cpu()
        self.plan.trace.masks[sigma] = first

    def block(self, site: Site, like: torch.Tensor) -> ImageAttention:
        """The block of a site on the device and in the precision of ``like``."""
        if site not in self.moved:
            block = self.plan.blocks[site]
            with torch.device("meta"):
                copy = ImageAttention(block.norm1.normalized_shape[0], block.attn1.heads)
            with torch.inference_mode(False):  # guidance may ask for gradients
                weights = {name: value.detach().to(like).clone() for name, value in block.state_dict().items()}
                copy.load_state_dict(weights, assign=True)
            self.moved[site] = copy.requires_grad_(False)
        return self.moved[site]


@dataclass(frozen=True, eq=False)
class VicoCall:
    """One call of the network: the chunks of its batch that look at the reference."""

    session: VicoSession
    chunks: int
    seen: dict[int, Remembered]  # chunk -> what its prompt's sites see

    def change(self, site: Site, states: torch.Tensor) -> torch.Tensor:
        """``states`` [K B, N, D] with what the block of a site makes of those that take part."""
        size, strength = states.shape[0] // self.chunks, self.session.plan.settings.strength
        if states.shape[0] % self.chunks or site not in self.session.plan.blocks:
            return states
        parts = list(states.split(size))
        before = torch.cat([parts[chunk] for chunk in self.seen])
        reference, mask = (torch.cat([getattr(seen, what)[site].expand(size, *[-1] * depth) for seen in self.seen.values()])
                           for what, depth in (("states", 2), ("masks", 1)))
        after = self.session.block(site, states)(before, reference.to(states), mask)
        if strength != 1:
            after = before + strength * (after - before)
        for chunk, part in zip(self.seen, after.split(size)):
            parts[chunk] = part
        self.session.plan.trace.looks += 1
        return torch.cat(parts)
