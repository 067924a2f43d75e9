"""Says before a run what a node's subject words will be taken as: a route of the host's server that the word picker asks.

The prompts are read by the code that reads them in a run, with CLIP's own tokenizer, which comes with the host.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import comfy.sd1_clip

from ..graph import notes
from ..text.conditioning import NotInPrompt, Reading, read
from ..text.markup import bare, embeddings_of, words_asked_for, words_of
from ..text.words import other_numbers
from .masks import said_of_both, shared

ROUTE = "/dreammatcher/words"
ALIKE = 0.5  # least likeness of a word that is offered instead, difflib's ratio


class Reader:
    """A CLIP as far as finding words needs one: it makes tokens and encodes nothing. Embeddings are words to it."""

    def __init__(self) -> None:
        self.tokenizer = comfy.sd1_clip.SD1Tokenizer()

    def tokenize(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, list]:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)


@functools.cache
def reader() -> Reader:
    return Reader()


def ahead(texts: Mapping[str, str], words: str) -> dict[str, Any]:
    """The remarks of a node on ``words`` in its prompts, ``texts`` by the names of their inputs: one, or reference and target.

    ``said`` are remarks, ``error`` is why it will refuse them. ``word`` is then the one that is missing, and ``nearest`` one of
    the prompts' that may have been meant; both may be empty. Nothing is said of embeddings, whose files a run reads.
    """
    if any(map(embeddings_of, texts.values())) and (not words_asked_for(words) or "embedding:" in words):
        return _answer()
    readings: list[Reading] = []
    for name, text in texts.items():
        front = f"{name}: " if len(texts) > 1 else ""
        try:
            readings.append(read(reader(), text, words))
        except NotInPrompt as missing:
            return _answer(error=f"{front}{missing}", word=missing.word, nearest=nearest(missing.word, texts))
        except ValueError as refused:
            return _answer(error=f"{front}{refused}")
    said = [(*reading.about, *reading.remarks) for reading in readings]
    if len(readings) == 1:
        return _answer(said[0])
    of_each = tuple(f"{name}: {remark}" for name, remarks in zip(texts, said) for remark in remarks)
    _, _, of_both = shared(readings[0].subject, readings[1].subject)
    return _answer(said_of_both((of_both,) if of_both else (), of_each))


def _answer(said: Sequence[str] = (), error: str = "", word: str = "", nearest: str = "") -> dict[str, Any]:
    return {"said": [*said], "error": error, "word": word, "nearest": nearest}


def nearest(word: str, texts: Mapping[str, str]) -> str:
    """The word of all the texts that is most like ``word``, else the first that names a subject there; or an empty string."""
    common = [each for each in words_of(list(texts.values())[-1]) if all(_has(text, each) for text in texts.values())]
    lower = {each.lower(): each for each in common}
    if alike := get_close_matches(word.lower(), lower, 1, ALIKE):
        return lower[alike[0]]
    try:
        named = {each.lower() for text in texts.values() for each, _ in read(reader(), text, "").subject.choices}
    except ValueError:
        return ""
    return next((each for each in common if each.lower() in named), "")


def _has(text: str, word: str) -> bool:
    known = {each.lower() for each in words_of(text)}
    return not known.isdisjoint({word.lower(), *other_numbers(word)})


def refusal(texts: Mapping[str, str | None], words: str | None) -> str | bool:
    """The reason for which a node will refuse its subject words, or True, as VALIDATE_INPUTS gives it: without a traceback.

    Texts that come from another node are None, and are read in the run. So is all that another text encoder's tokenizer may see
    otherwise: words of other scripts, and words whose letters stand somewhere in the prompt.
    """
    if words is None:
        return True
    for name, text in texts.items():
        if text is None or any(mark in text for mark in "{}"):
            continue
        for word in words_asked_for(words):
            if word.isascii() and text.isascii() and not _could_be_there(word, text):
                said = ahead({name: text}, word)["error"]
                if said:
                    return said if len(texts) == 1 else f"{name}: {said}"
    return True


def _could_be_there(word: str, text: str) -> bool:
    if "embedding:" in word:
        return True
    plain, letters = bare(word).lower(), text.lower()
    forms = [plain, *other_numbers(plain)]
    return any(part in letters for form in forms for part in re.findall("[a-z0-9]+", form))


def listen() -> None:
    """Puts the answers on a route of the host's server, where there is one."""
    running = notes.server_instance()
    if running is None or not hasattr(running, "routes"):
        return
    from aiohttp import web

    @running.routes.post(ROUTE)
    async def answer(request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            texts, words = {str(name): str(text) for name, text in asked["prompts"].items()}, str(asked["words"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return web.json_response({"error": "give prompts, texts by name, and words, a text"}, status=400)
        if not 1 <= len(texts) <= 2:
            return web.json_response({"error": "prompts: give one or two"}, status=400)
        return web.json_response(ahead(texts, words))
