"""Installs SeFi-IDE on a clone of the user's model: prompts with its words are read as their stage says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ...backbones.base import Site
from ...sefi.learned import SeFi
from ...subject import text_starts
from ...training.ranges import check
from ...uncopied import Uncopied
from ..graph.notes import not_connected, tell
from ..model.arguments import context_of
from ..model.compiling import hide
from ..model.patch_points import Points, install_behind
from ..model.text_patches import prompt_widths
from ..sampling.lifecycle import install_plan, names_of
from ..sampling.model_calls import around_calls, options_of, with_option
from ..sampling.rows import RowBook
from ..sampling.runs import Installed, Start
from ..sampling.session import CallWatch, Clock, Session, noise_level
from .prompt import StagedText

#: where the plans of a model stand in its transformer options, and what the prompts of the current call are read as
PLANS_KEY, READ_KEY = "dreammatcher_sefi", "dreammatcher_sefi_read"
NOTHING = ("SeFi-IDE changed nothing in this run: no prompt was written with SeFi Prompt (DreamMatcher) and the word {word!r} "
           "(where prompts are joined, connect it to conditioning_to), or no step lies between start and end")
CHANGED = ("a prompt of SeFi Prompt (DreamMatcher) was averaged or changed by another node, so its stages cannot take its place; "
           "it is read as it is")


@dataclass(frozen=True, eq=False)
class SefiPlan(Uncopied):
    """One SeFi Apply. A copy of it is itself."""

    word: str
    start: float
    end: float

    def __post_init__(self) -> None:
        check("start", self.start, 0, 1)
        check("end", self.end, self.start, 1, "it must not lie in front of start")


@dataclass(eq=False)
class SefiSession(Session):
    """A sampling session of one plan."""

    plan: SefiPlan = field(kw_only=True)
    reads: list[int] = field(kw_only=True)  # of calls so far that were read by stages
    moved: dict[tuple, torch.Tensor] = field(default_factory=dict)  # texts where and as the model computes
    starts: dict[object, list[int]] = field(default_factory=dict)  # of a staged text in the prompts' entries

    def texts(self, name: object) -> StagedText | None:
        """The texts of the prompt that a chunk comes from, if its word is in them."""
        texts = self.rows.encoded(name).texts
        return texts if isinstance(texts, StagedText) and self.plan.word in texts.words else None

    def places(self, name: object, staged: StagedText, length: int) -> list[int]:
        """The places in a context of ``length`` at which the ``staged`` text of a prompt begins.

        Hosts repeat a shorter prompt, and other nodes join several. Empty, which is said, where they changed it.
        """
        entry = self.rows.encoded(name)
        if name not in self.starts:
            self.starts[name] = [0] if entry.text is None else text_starts(staged.plain[0], entry.text[0])
            if not self.starts[name]:
                self.skip(CHANGED)
        text_length = staged.plain.shape[1] if entry.text is None else entry.text.shape[1]
        repeats = range(0, length, text_length) if length % text_length == 0 else (0,)
        return [start + first for start in repeats for first in self.starts[name]]

    def on_device(self, text: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A text on the device and in the precision of ``like``; it travels once in a run."""
        key = (id(text), like.device, like.dtype)
        if key not in self.moved:
            self.moved[key] = text.to(like)
        return self.moved[key]


@dataclass(frozen=True, eq=False)
class Read:
    """The texts that all prompts of a call are read as: one for keys and one for values, [K B, T, D] each."""

    keys: torch.Tensor
    values: torch.Tensor


def apply_or_pass(model, sefi: SeFi | None, start: float, end: float) -> Any:
    """:func:`apply_sefi`; without what was learned the model as it is, with a note."""
    if sefi is None:
        not_connected("sefi", "SeFi Train (DreamMatcher) or SeFi Load (DreamMatcher)", "the model goes on as it is")
        return model
    return apply_sefi(model, sefi, start, end)


def apply_sefi(model, sefi: SeFi, start: float, end: float) -> Any:
    """A clone of ``model`` that reads prompts of SeFi Prompt (DreamMatcher) with ``sefi``'s word by stages.

    Raises ValueError for a model of another family than those known, and for one whose words have another width.
    """
    widths = prompt_widths(model.model)
    if widths and sefi.keys.shape[1] not in widths:
        raise ValueError(f"sefi: the word {sefi.word!r} has vectors of {sefi.keys.shape[1]} numbers and this model reads prompts "
                         f"of {', '.join(map(str, sorted(widths)))}; it was learned on another kind of model")
    clone, _ = install_plan(model, SefiPlan(sefi.word, start, end), PLANS_KEY, _begin, _watch_calls)
    return clone


def _watch_calls(model) -> None:
    around_calls(model, PLANS_KEY, _around)
    install_behind(model, PATCHES)


def _begin(plan: SefiPlan, start: Start) -> SefiSession:
    hide()
    clock = Clock.between(start.sampling, plan.start, plan.end)
    reads = [0]
    skipped: list[str] = []
    return SefiSession(start.base, clock, RowBook(None), CallWatch(), skipped, partial(_conclude, plan, reads, skipped),
                       plan=plan, reads=reads)


def _conclude(plan: SefiPlan, reads: list[int], skipped: list[str]) -> None:
    if not reads[0]:
        tell(f"SeFi-IDE changed nothing in this run: {'; '.join(skipped)}" if skipped else NOTHING.format(word=plan.word))
    elif skipped:
        tell(f"SeFi-IDE left out a part of this run: {'; '.join(skipped)}")


def _around(call: Callable, *arguments, **named) -> torch.Tensor:
    options = options_of(arguments, named)
    context = context_of(arguments, named)
    plans: tuple[Installed[SefiPlan, SefiSession], ...] = options.get(PLANS_KEY, ())
    sessions = [session for each in plans if (session := each.holder.session()) is not None]
    read = _read_as(sessions, options, context) if sessions and context is not None else None
    return call(*arguments, **named) if read is None else with_option(call, arguments, named, READ_KEY, read)


def _read_as(sessions: list[SefiSession], options: dict, context: torch.Tensor) -> Read | None:
    sigma = noise_level(options["sigmas"])
    timestep = float(sessions[0].clock.sampling.timestep(torch.tensor(sigma)))
    names = {session: names_of(options, session.rows) for session in sessions if session.clock.in_range(sigma)}
    chunks = len(options["cond_or_uncond"])
    keys, values, staged = list(context.chunk(chunks)), list(context.chunk(chunks)), False
    for session, chunk_names in names.items():
        for chunk, name in enumerate(chunk_names):
            texts = session.texts(name)
            if texts is None:
                continue
            places = session.places(name, texts, context.shape[1])
            if not places:
                continue
            number, staged = texts.at(timestep), True
            keys[chunk], values[chunk] = (_in_place_of(context, session.on_device(part[number], context), places)
                                          for context, part in ((keys[chunk], texts.keys), (values[chunk], texts.values)))
            session.reads[0] += 1
    return Read(torch.cat(keys), torch.cat(values)) if staged else None


def _in_place_of(context: torch.Tensor, text: torch.Tensor, places: list[int]) -> torch.Tensor:
    """``context`` [B, L, D] with ``text`` [1, T, D] in its places; what other nodes and packs put around it stays."""
    context = context.clone()
    for start in places:
        context[:, start:start + text.shape[1]] = text
    return context


def _read(_: Site, n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
    """The patch of cross-attention. A context that another pack has changed in front of it is left as it is."""
    read = extra.get(READ_KEY)
    if read is None or context.shape != read.keys.shape:
        return n, context, value
    return n, read.keys.to(context), read.values.to(context)


PATCHES = Points(prompt=_read).patches()
