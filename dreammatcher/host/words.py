"""Which tokens of a prompt a subject word means.

A word is looked for as its tokens. Where it does not stand as it is, the obvious is taken, with a remark: its plural or
singular, tokens inside a longer word, or, in scripts without upper and lower case, a part of a text without spaces.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import accumulate

import torch

WORD_END = "</w>"  # of CLIP's byte-pair tokens (Radford et al. 2021)
#: endings of English nouns, singular and plural, behind which more than an s changes
ENDINGS = (("y", "ies"), ("f", "ves"), ("fe", "ves"), *((hiss, hiss + "es") for hiss in ("s", "x", "z", "ch", "sh", "o")))
BETWEEN_WORDS = r"[\s,.:;!?()\[\]{}|、。，．：；！？（）]+"
SHORTEST = 3  # letters of a singular; "a" is none of "as"


@dataclass(frozen=True, eq=False)
class Piece:
    """One token of a text."""

    column: int
    token: object  # its number, or a vector where an embedding stands
    text: str | None  # as the vocabulary spells it; None where that is not known
    first: bool  # of its word

    def is_like(self, other: Piece) -> bool:
        a, b = self.token, other.token
        if torch.is_tensor(a) or torch.is_tensor(b):
            return torch.is_tensor(a) and torch.is_tensor(b) and a.shape == b.shape and bool(torch.equal(a, b))
        return a == b


@dataclass(frozen=True)
class Place:
    """Where a word stands in a prompt, and what is to be said about it."""

    columns: tuple[int, ...]
    remark: str = ""


@dataclass(frozen=True, eq=False)
class Text:
    """A prompt, or a word, as the first of a CLIP's tokenizers cuts it."""

    pieces: list[Piece]
    length: int  # of the conditioning

    @staticmethod
    def of(clip, text: str) -> Text:
        chunks = next(iter(clip.tokenize(text, return_word_ids=True).values()))
        entries = [entry for chunk in chunks for entry in chunk]
        columns = [column for column, entry in enumerate(entries) if entry[2]]  # no start, end and padding
        spelled = _spelled(clip, [entries[column][0] for column in columns])
        ends = [True, *(text is None or text.endswith(WORD_END) for text in spelled)]
        return Text([Piece(column, entries[column][0], text, first)
                     for column, text, first in zip(columns, spelled, ends)], len(entries))

    def runs(self, other: Text) -> list[int]:
        """Where the tokens of ``other`` begin."""
        count = len(other.pieces)
        return [start for start in range(len(self.pieces) - count + 1) if count and all(
            mine.is_like(theirs) for mine, theirs in zip(self.pieces[start:start + count], other.pieces))]

    def whole(self, other: Text) -> list[int]:
        """Where the tokens of ``other`` begin with a word."""
        return [start for start in self.runs(other) if self.pieces[start].first]

    def place(self, starts: list[int], count: int, remark: str = "") -> Place:
        return Place(tuple(sorted({self.pieces[start + offset].column for start in starts for offset in range(count)})), remark)


def find(clip, text: Text, prompt: str, word: str) -> Place | None:
    """Every place of ``word`` in ``prompt``, which ``text`` is, or None.

    Raises ValueError when two different words of the prompt could be meant.
    """
    wanted = Text.of(clip, word)
    if _without_case(word) and all(piece.text is not None for piece in wanted.pieces):
        return _spelled_alike(text, wanted, prompt, word)
    if whole := text.whole(wanted):
        return text.place(whole, len(wanted.pieces))
    return _other_number(clip, text, word) or _inside_a_word(text, wanted, word)


def other_numbers(word: str) -> list[str]:
    """What may be the plural or the singular of an English noun, in lower case."""
    word = word.lower()
    if not word.isalpha() or len(word) < SHORTEST:
        return []
    plurals = [word[:-len(one)] + many for one, many in ENDINGS if word.endswith(one)]
    singulars = [word[:-len(many)] + one for one, many in ENDINGS if word.endswith(many)]
    if not word.endswith("s"):
        plurals.append(word + "s")
    elif not word.endswith("ss"):
        singulars.append(word[:-1])
    return plurals + [one for one in singulars if len(one) >= SHORTEST]


def _other_number(clip, text: Text, word: str) -> Place | None:
    places = {}
    for candidate in other_numbers(word):
        wanted = Text.of(clip, candidate)
        if whole := text.whole(wanted):
            remark = f"{word!r} is taken as {candidate!r}, which is in the prompt"
            places[candidate] = text.place(whole, len(wanted.pieces), remark)
    if len(places) > 1:
        raise ValueError(f"subject_words: {word!r} could be {' or '.join(map(repr, places))} of the prompt; write the one that "
                         "you mean")
    return next(iter(places.values()), None)


def _inside_a_word(text: Text, wanted: Text, word: str) -> Place | None:
    starts = text.runs(wanted)
    return text.place(starts, len(wanted.pieces), f"{word!r} is taken inside a longer word of the prompt") if starts else None


def _spelled_alike(text: Text, wanted: Text, prompt: str, word: str) -> Place | None:
    """Chinese, Japanese and Thai put no spaces between words, Korean none before particles.

    Tokens are cut otherwise there than in a word alone, so letters are compared. A token counts when it overlaps.
    """
    spelled, part = [_spelling(piece) for piece in text.pieces], "".join(map(_spelling, wanted.pieces))
    ends = list(accumulate(map(len, spelled)))
    matches = [match.span() for match in re.finditer(re.escape(part), "".join(spelled))] if part else []
    columns = tuple(piece.column for piece, spelling, end in zip(text.pieces, spelled, ends)
                    if any(start < end and end - len(spelling) < stop for start, stop in matches))
    around = next((given for given in re.split(BETWEEN_WORDS, prompt) if word in given and word != given), None)
    return Place(columns, f"{word!r} is taken inside {around!r}" if around else "") if columns else None


def _without_case(word: str) -> bool:
    """Whether a word is of letters that have no upper and lower case, with their marks and digits."""
    kinds = {unicodedata.category(letter) for letter in word}
    return "Lo" in kinds and kinds <= {"Lo", "Lm", "Mn", "Mc", "Nd"}


def _spelling(piece: Piece) -> str:
    """What a token spells; where that is not known a space, which no letter does."""
    return " " if piece.text is None else piece.text.removesuffix(WORD_END)


def _spelled(clip, tokens: list) -> list[str | None]:
    """How the vocabulary spells each token; None for vectors, and for all of them where a tokenizer does not tell."""
    numbers = [token for token in tokens if isinstance(token, int)]
    try:
        spelled = iter([text for _, text in clip.tokenizer.untokenize([(number, 1.0) for number in numbers])])
    except (AttributeError, KeyError, TypeError):
        return [None] * len(tokens)
    return [next(spelled) if isinstance(token, int) else None for token in tokens]
