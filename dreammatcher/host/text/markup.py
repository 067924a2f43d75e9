"""Markup in prompts: weights and brackets, and the syntax that other programs and packs would replace.

ComfyUI knows ``(word:1.2)`` and ``embedding:name``. The rest reaches the text encoder as it stands and is read as words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: of other programs: <lora:name:1>, BREAK, __wildcard__, {one|other}, [one:other:0.5], [one|other], and an embedding behind
#: something else than a space
FOREIGN = re.compile(r"<\w+:[^<>]*>|\b(?:BREAK|ADDCOMM|ADDBASE|ADDCOL|ADDROW)\b|__[\w\-/*.]+?__"
                     r"|\{(?:[^{}]|\{[^{}]*\})*\}|\[[^\[\]]*[:|][^\[\]]*\]|(?<=[^\s(])embedding:[^\s,()]+")
#: an embedding as the host takes it: at the start of a text or of a bracket, or behind a space
EMBEDDING = re.compile(r"(?:(?<=[\s(])|^)embedding:(?:\\[()]|[^\s,()<\[\]])+")
_WEIGHT = re.compile(r":\s*-?\d*\.?\d+\s*(?=\))")  # the 1.2 of (dog:1.2)
_BARE_WEIGHT = re.compile(r"(?<=[^\W\d]):-?\d*\.?\d+$")  # the 1.2 of dog:1.2
_BRACKETS = re.compile(r"(?<!\\)[()]|[\[\]{}]")
_BETWEEN = re.compile(r"[\s,|、。，．：；！？（）]+")
#: a weight that nobody writes
TAG = -977.0


@dataclass(frozen=True)
class Markup:
    """The parts of a prompt that other programs would replace."""

    parts: tuple[str, ...]  # in their order
    tagged: str  # the prompt with the weight TAG for these parts

    @staticmethod
    def of(prompt: str) -> Markup:
        parts = tuple(FOREIGN.findall(prompt))
        return Markup(parts, FOREIGN.sub(lambda match: f"({match[0]}:{TAG:.0f})", prompt) if parts else prompt)


def bare(word: str) -> str:
    """A word without a weight and brackets; those that ``\\`` makes a part of the text stay."""
    return _BARE_WEIGHT.sub("", _BRACKETS.sub("", _WEIGHT.sub("", word)))


def words_asked_for(text: str) -> list[str]:
    """The words of ``subject_words``, which may have brackets and weights as in the prompt."""
    return [word for word in re.split(r"[\s,]+", _WEIGHT.sub("", text)) if word]


def words_of(prompt: str) -> list[str]:
    """The words of a prompt in their order, for messages."""
    plain = (bare(part.strip()) for part in _BETWEEN.split(_WEIGHT.sub("", FOREIGN.sub(" ", prompt))))
    return [part for part in plain if part]


def embeddings_of(prompt: str) -> list[str]:
    """Names of the embeddings in a prompt as they are written, without weights: embedding:name."""
    return list(dict.fromkeys(EMBEDDING.findall(_WEIGHT.sub("", prompt))))


def advice_on(parts: tuple[str, ...]) -> str:
    """Advice on what to write or do instead of some markup."""
    advice = []
    if any(part.startswith("<") for part in parts):
        advice.append("load LoRAs with Load LoRA")
    if any(part.isupper() and part.isalpha() for part in parts):
        advice.append("join prompts with Conditioning (Concat)")
    if any(part.startswith("embedding:") for part in parts):
        advice.append("put a space in front of embeddings")
    if any(part[0] in "_{[" for part in parts):
        advice.append("write the words that you mean")
    return ", ".join(advice)
