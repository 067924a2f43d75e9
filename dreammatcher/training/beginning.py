"""Begins a training from weights that were learned before, so that its first step sees the model with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ..weights import LowRank
from .adapters import Adapter, Factors
from .trainables import Full, Lora, TokenRows, Trainable

#: a change to one weight: a pair of factors, the whole difference, or factors of another form
Change = LowRank | torch.Tensor | Factors
INPUT = "begin_from"


def begin(trainable: Trainable, changes: Mapping[str, Change]) -> None:
    """Sets ``trainable`` to ``changes`` by name of the weight; those that are not among them stay as they begin.

    Factors of a smaller rank are filled up: the further rows of A stay as they were drawn and the columns of B are zero, so the
    difference is the same and all of the rank learns. Raises ValueError, before anything is set, for weights that it does not
    hold, for a larger rank, for a whole difference where low ranks learn, and for factors of another form than those that learn.
    """
    if isinstance(trainable, Adapter):
        _begin_adapter(trainable, changes)
        return
    other = next(((name, one) for name, one in changes.items() if isinstance(one, Factors)), None)
    if other is not None:
        form = other[1].algorithm
        raise ValueError(f"{INPUT}: {other[0]} is changed by a {form}, and {_kind(trainable)} learns here; set algorithm to "
                         f"{form} in Training Details (DreamMatcher) for a LoRA, or apply it to the model in front")
    if isinstance(trainable, Lora):
        _begin_lora(trainable, changes)
    elif isinstance(trainable, Full):
        known = trainable.differences()
        _check_known(changes, known)
        for name, change in changes.items():
            if isinstance(change, LowRank):
                change = LowRank(change.down.flatten(1).float(), change.up.flatten(1).float(), change.scale).matrix()
            assert isinstance(change, torch.Tensor)
            known[name].data.copy_(change.view_as(known[name]))


def begin_rows(rows: TokenRows, word: str, words: Mapping[str, torch.Tensor]) -> None:
    """Sets the vectors of ``word`` to those of ``words`` [V, D] by its name, or to those of the only one there is.

    Raises ValueError where there is none, where there are several others, and for another count or width of vectors.
    """
    if word not in words and len(words) != 1:
        said = f"its words are {', '.join(map(repr, words))} and not" if words else "it holds no vectors for"
        raise ValueError(f"{INPUT}: {said} {word!r}, which is learned here; connect an embedding of this word")
    learned = words[word] if word in words else next(iter(words.values()))
    own = rows.rows
    if learned.shape[1] != own.shape[1]:
        raise ValueError(f"{INPUT}: its vectors have {learned.shape[1]} numbers and this model's words {own.shape[1]}; it was "
                         "learned on another kind of model")
    if len(learned) != len(own):
        raise ValueError(f"{INPUT}: its word has {len(learned)} vectors and {len(own)} are learned here; set vectors to "
                         f"{len(learned)}, where the node has that input")
    own.data.copy_(learned)


def begin_words(rows: Mapping[str, TokenRows], words: Mapping[str, torch.Tensor]) -> list[str]:
    """Sets the vectors of each word of ``rows`` as :func:`begin_rows` does, and raises as that.

    Of several words, those that are not among ``words`` stay as they begin and are returned. Raises ValueError where none is.
    """
    known = [word for word in rows if word in words]
    if len(rows) > 1 and not known:
        raise ValueError(f"{INPUT}: its words are {', '.join(map(repr, words)) or 'none'}, and those that are learned here "
                         f"{', '.join(map(repr, rows))}; connect an embedding of one of these")
    for word in known or rows:
        begin_rows(rows[word], word, words)
    return [word for word in rows if known and word not in known]


def _begin_lora(trainable: Lora, changes: Mapping[str, Change]) -> None:
    factors, scale = trainable.factors(), trainable.settings.scale
    _check_known(changes, factors)
    pairs = {name: change for name, change in changes.items() if isinstance(change, LowRank)}
    if len(pairs) < len(changes):
        raise ValueError(f"{INPUT}: {next(name for name in changes if name not in pairs)} has a whole difference there, and a "
                         "LoRA learns factors; set kind to full, or apply it to the model in front")
    largest = max((len(change.down) for change in pairs.values()), default=0)
    if largest > trainable.settings.rank:
        raise ValueError(f"{INPUT}: its rank is {largest} and the node's {trainable.settings.rank}; set rank to {largest} or "
                         "more")
    for name, change in pairs.items():
        (down, up), rank = factors[name], len(change.down)
        down.data[:rank] = change.down.view(rank, *down.shape[1:])
        up.data.zero_()
        up.data[:, :rank] = change.up.float().flatten(1) * (change.scale / scale)


def _begin_adapter(trainable: Adapter, changes: Mapping[str, Change]) -> None:
    _check_known(changes, trainable.shapes)
    for name, change in changes.items():
        if not isinstance(change, Factors) or change.algorithm != trainable.algorithm:
            said = change.algorithm if isinstance(change, Factors) else "plain LoRA" if isinstance(change, LowRank) else \
                "whole difference"
            raise ValueError(f"{INPUT}: {name} is changed by a {said}, and a {trainable.algorithm} learns here; set algorithm in "
                             "Training Details (DreamMatcher) as it was, or apply it to the model in front")
        try:
            trainable.begin(name, change)
        except ValueError as error:
            raise ValueError(f"{INPUT}: {error}") from error


def _kind(trainable: Trainable) -> str:
    return "a plain LoRA" if isinstance(trainable, Lora) else "a whole difference"


def _check_known(changes: Mapping[str, Change], known: Iterable[str]) -> None:
    others = [name for name in changes if name not in set(known)]
    if others:
        raise ValueError(f"{INPUT}: it changes {len(others)} weights that are not taught here, as {others[0]}; apply it to the "
                         f"model in front instead, and leave {INPUT} free")
