"""Installs SeFi-IDE on a clone of the user's model: prompts with its words are read as their stage says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ...sefi.learned import SeFi
from ...training.settings import check
from ...unet import structure_of
from ..calls import around_calls, context_of, with_option
from ..installed import Installed, SessionHolder
from ..lifecycle import install, names_of
from ..notes import not_connected, tell
from ..rows import RowBook
from ..session import CallWatch, Clock, Session, noise_level
from ..start import Start
from ..verify import options_of
from .prompt import StagedText

#: where the plans of a model stand in its transformer options, and what the prompts of the current call are read as
PLANS_KEY, READ_KEY = "dreammatcher_sefi", "dreammatcher_sefi_read"
NOTHING = ("SeFi-IDE changed nothing in this run: no prompt was written with DreamMatcher SeFi Prompt and the word {word!r}, or "
           "no step lies between start and end")


@dataclass(frozen=True, eq=False)
class SefiPlan:
    """One SeFi Apply. A copy of it is itself."""

    word: str
    start: float
    end: float

    def __post_init__(self) -> None:
        check("start", self.start, 0, 1)
        check("end", self.end, self.start, 1, "it must not lie in front of start")

    def __deepcopy__(self, memo: dict) -> SefiPlan:
        return self


@dataclass(eq=False)
class SefiSession(Session):
    """A sampling session of one plan."""

    plan: SefiPlan = field(kw_only=True)
    reads: list[int] = field(kw_only=True)  # of calls so far that were read by stages
    moved: dict[tuple, torch.Tensor] = field(default_factory=dict)  # texts where and as the model computes

    def texts(self, name: object) -> StagedText | None:
        """The texts of the prompt that a chunk comes from, if its word is in them."""
        number = self.rows.numbers().get(name)
        texts = None if number is None else self.rows.prompts[number].texts
        return texts if isinstance(texts, StagedText) and self.plan.word in texts.words else None

    def on_device(self, text: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A text on the device and in the precision of ``like``; it travels once in a run."""
        key = (id(text), like.device, like.dtype)
        if key not in self.moved:
            self.moved[key] = text.to(like)
        return self.moved[key]


@dataclass(frozen=True, eq=False)
class Read:
    """What all prompts of a call are read as: one text for keys and one for values, [K B, T, D] each."""

    keys: torch.Tensor
    values: torch.Tensor


def apply_or_pass(model, sefi: SeFi | None, start: float, end: float) -> Any:
    """:func:`apply_sefi`; without what was learned the model as it is, with a note."""
    if sefi is None:
        not_connected("sefi", "DreamMatcher SeFi Train or DreamMatcher SeFi Load", "the model goes on as it is")
        return model
    return apply_sefi(model, sefi, start, end)


def apply_sefi(model, sefi: SeFi, start: float, end: float) -> Any:
    """A clone of ``model`` that reads prompts of DreamMatcher SeFi Prompt with ``sefi``'s word by stages.

    Raises ValueError for a model that is no UNet, and for one whose words have another width.
    """
    structure_of(model.model)
    plan = SefiPlan(sefi.word, start, end)
    clone, installed = model.clone(), Installed(plan, SessionHolder())
    options = clone.model_options["transformer_options"] = dict(clone.model_options["transformer_options"])
    if PLANS_KEY not in options:
        around_calls(clone, PLANS_KEY, _around)
        clone.set_model_attn2_patch(_read)
    options[PLANS_KEY] = (*options.get(PLANS_KEY, ()), installed)
    install(clone, installed.holder, partial(_begin, plan))
    return clone


def _begin(plan: SefiPlan, start: Start) -> SefiSession:
    clock = Clock(start.sampling, *(float(start.sampling.percent_to_sigma(share)) for share in (plan.start, plan.end)))
    reads: list[int] = [0]
    return SefiSession(start.base, clock, RowBook(None), CallWatch(), [], partial(_conclude, plan, reads), plan=plan, reads=reads)


def _conclude(plan: SefiPlan, reads: list[int]) -> None:
    if not reads[0]:
        tell(NOTHING.format(word=plan.word))


def _around(call: Callable, *arguments, **named) -> torch.Tensor:
    options = options_of(arguments, named)
    context = context_of(arguments, named)
    sessions = [session for own in (options or {}).get(PLANS_KEY, ()) if (session := own.holder.session()) is not None]
    read = _read_as(sessions, options, context) if sessions and context is not None else None
    return call(*arguments, **named) if read is None else with_option(call, arguments, named, READ_KEY, read)


def _read_as(sessions: list[SefiSession], options: dict, context: torch.Tensor) -> Read | None:
    sigma = noise_level(options["sigmas"])
    timestep = float(sessions[0].clock.sampling.timestep(torch.tensor(sigma)))
    names = {session: names_of(options, session.rows) for session in sessions if session.clock.in_range(sigma)}
    chunks = len(options["cond_or_uncond"])
    keys, values, found = list(context.chunk(chunks)), list(context.chunk(chunks)), False
    for session, own in names.items():
        for chunk, name in enumerate(own):
            texts = session.texts(name)
            if texts is None:
                continue
            number, found = texts.at(timestep), True
            keys[chunk], values[chunk] = (_in_place_of(context, session.on_device(part[number], context))
                                          for context, part in ((keys[chunk], texts.keys), (values[chunk], texts.values)))
            session.reads[0] += 1
    return Read(torch.cat(keys), torch.cat(values)) if found else None


def _in_place_of(context: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """``text`` [1, T, D] as long and as often as ``context`` [B, L, D]: hosts repeat a shorter prompt; what other packs appended
    stays behind it."""
    length, own = context.shape[1], text.shape[1]
    repeated = text.repeat(1, length // own, 1) if length % own == 0 else torch.cat([text, context[:1, own:]], 1)
    return repeated[:, :length].expand(len(context), -1, -1)


def _read(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
    """The patch of cross-attention. A context that another pack has changed in front of it is left as it is."""
    read = extra.get(READ_KEY)
    if read is None or context.shape != read.keys.shape:
        return n, context, value
    return n, read.keys.to(context), read.values.to(context)
