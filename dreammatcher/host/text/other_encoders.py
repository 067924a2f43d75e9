"""Prompts as text encoders other than CLIP's read them: T5, Qwen, Mistral, Gemma and Llama.

Their vocabularies mark where a word begins, cut a word otherwise where it stands in another place, and some prompts stand in a
template. So a word is looked for by its letters, between the tokens that an empty prompt has too.
"""

from __future__ import annotations

import codecs
import re
from itertools import accumulate, pairwise
from typing import Any

import torch

from ...subject import READ_COLUMNS
from .markup import Markup
from .pieces import WORD_END, Piece
from .towers import ORDER

T5 = "t5xxl"
#: Anima's text encoders
ANIMA = frozenset(("qwen3_06b", T5))
#: sets of text encoders of which only some make the prompt that the network reads
READ_ALONE = {frozenset(("l", T5)): T5, frozenset(("l", "g", T5, "llama")): T5, ANIMA: T5}
#: a token that stands for letters which a vocabulary does not have, and what it is taken as
UNKNOWN, UNSPELLED = "<unk>", "\ufffd"
SPACE, BYTE_SPACE, BYTE = "\u2581", "\u0120", re.compile("<0x([0-9A-F]{2})>")


class UnknownEncoder(ValueError):
    """The text encoders of a model do not tell which token becomes which column of the prompt."""

    def __init__(self, names: Any):
        super().__init__(f"clip: this model's text encoders ({', '.join(names)}) do not tell where a word stands in the prompt "
                         "that they make; encode with CLIP Text Encode, paint the subject of the reference white and connect it "
                         "to reference_mask of Mask (DreamMatcher), without subjects")


def starts(clip: Any, cut: dict[str, list]) -> dict[str, int]:
    """The text encoders whose tokens become columns of the prompt, and the column at which those of each begin.

    ``cut`` are the tokens by text encoder. Raises UnknownEncoder where that is not known.
    """
    names = frozenset(cut)
    if names <= {*ORDER}:
        return dict.fromkeys(cut, 0)
    if names == {"l", "g", T5}:  # SD3: both CLIPs side by side, and T5 behind them; any may be missing
        model = getattr(clip, "cond_stage_model", None)
        there = [name for name in cut if getattr(model, name if name == T5 else f"clip_{name}", True) is not None]
        clips = [name for name in there if name != T5]
        behind = min((sum(map(len, cut[name])) for name in clips), default=0)
        return {name: behind if name == T5 else 0 for name in there}
    name = READ_ALONE.get(names) or (next(iter(cut)) if len(cut) == 1 else None)
    if name is None or _vocabulary(clip, name) is None:
        raise UnknownEncoder(cut)
    return {name: 0}


def length(cut: dict[str, list], tower: str) -> int:
    """Columns that the tokens of a text encoder become. Anima's network makes them by itself, and more of short prompts."""
    own = sum(map(len, cut[tower]))
    return max(own, READ_COLUMNS) if frozenset(cut) == ANIMA else own


def is_clip(tower: str) -> bool:
    """True for one of CLIP's text encoders."""
    return tower in ORDER


def _vocabulary(clip: Any, tower: str) -> dict[int, str] | None:
    """The spelling of each token of a text encoder; None where its tokenizer does not give it."""
    tokenizer = getattr(clip, "tokenizer", None)
    own = next((found for name in (tower, f"clip_{tower}") if (found := getattr(tokenizer, name, None)) is not None), None)
    return getattr(own, "inv_vocab", None)


def pieces(clip: Any, text: str, tower: str) -> list[Piece]:
    """The tokens of a prompt in their order, spelled as CLIP's vocabulary would: lower case, with a mark where a word ends.

    Those of the template around it are left out. Raises UnknownEncoder where a tokenizer does not spell its tokens.
    """
    vocabulary = _vocabulary(clip, tower)
    if vocabulary is None:
        raise UnknownEncoder((tower,))
    columns, tokens = _own(_tokens(clip, text, tower), [token for _, token in _tokens(clip, "", tower)])
    spelled = _spelled([vocabulary.get(token, "") if isinstance(token, int) else "" for token in tokens],
                       BYTE_SPACE in vocabulary.values())
    return _as_words(columns, tokens, spelled, Markup.of(text).parts)


def spans(pieces: list[Piece], wanted: list[Piece], whole: bool) -> list[range]:
    """Numbers of the ``pieces`` at every place that spells what is ``wanted``: of whole words, or also inside of words."""
    spelled = [_letters(piece) for piece in pieces]
    ends = list(accumulate(map(len, spelled)))
    part = "".join(map(_letters, wanted))
    pattern = re.escape(part) + "(?= |$)" if whole else re.escape(part.strip())
    found = [match.span() for match in re.finditer(pattern, "".join(spelled))] if part.strip() else []
    numbers = [[number for number, (letters, end) in enumerate(zip(spelled, ends))
                if begin < end and end - len(letters) < stop and end - len(letters.strip()) < stop] for begin, stop in found]
    return [range(place[0], place[-1] + 1) for place in numbers if place]


def _letters(piece: Piece) -> str:
    return (" " if piece.first else "") + ("\0" if piece.text is None else piece.text.removesuffix(WORD_END))


def _tokens(clip: Any, text: str, tower: str) -> list[tuple[int, object]]:
    """The tokens of a text that are no padding, and the column of each."""
    every = [entry for chunk in clip.tokenize(text, return_word_ids=True)[tower] for entry in chunk]
    return [(column, entry[0]) for column, entry in enumerate(every) if entry[2]]


def _own(entries: list[tuple[int, object]], empty: list[object]) -> tuple[list[int], list[object]]:
    """Without those that an ``empty`` prompt has in front and behind."""
    tokens = [token for _, token in entries]
    least = min(len(tokens), len(empty))
    front = next((number for number in range(least) if not _same(tokens[number], empty[number])), least)
    back = next((number for number in range(least - front) if not _same(tokens[-1 - number], empty[-1 - number])), least - front)
    kept = entries[front:len(entries) - back]
    return [column for column, _ in kept], [token for _, token in kept]


def _same(one: object, other: object) -> bool:
    return not torch.is_tensor(one) and not torch.is_tensor(other) and one == other


def _spelled(spellings: list[str], bytewise: bool) -> list[str]:
    """The letters of each token. A letter of several tokens is the last one's, and the others have none."""
    decoder, letters = codecs.getincrementaldecoder("utf-8")("replace"), []
    byte_of = {letter: byte for byte, letter in _byte_letters().items()}
    for spelling in spellings:
        if spelling == UNKNOWN:
            raw = UNSPELLED.encode()
        elif bytewise:
            raw = b"".join(bytes((byte_of[letter],)) if letter in byte_of else letter.encode() for letter in spelling)
        else:
            raw = BYTE.sub(lambda match: chr(int(match[1], 16)), spelling).encode("latin-1") if BYTE.search(spelling) else (
                spelling.replace(SPACE, " ").encode())
        letters.append(decoder.decode(raw))
    return letters


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level vocabularies (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + number) for number, byte in enumerate(others)}}


def _loosely(part: str) -> str:
    """A pattern of some markup whose signs the vocabulary may not know."""
    return "".join(letter if letter.isalnum() else r"\s*" if letter.isspace() else f"(?:{re.escape(letter)}|{UNSPELLED})?"
                   for letter in part)


def _as_words(columns: list[int], tokens: list[object], spelled: list[str], markup: tuple[str, ...]) -> list[Piece]:
    """Pieces with words told apart as CLIP's tokenizer does: at spaces, and between letters and other signs."""
    whole, ends = "".join(spelled), list(accumulate(map(len, spelled)))
    marked = {place for part in markup if any(map(str.isalnum, part))
              for found in re.finditer(_loosely(part), whole) for place in range(*found.span())}
    made: list[Piece] = []
    for number, (letters, end) in enumerate(zip(spelled, ends)):
        bare, begin = letters.strip(), end - len(letters)
        follower = whole[end:end + 1]
        ends_here = torch.is_tensor(tokens[number]) or not follower or letters[-1:].isspace() or follower.isspace() or (
            bool(bare) and bare[-1].isalnum() != follower.isalnum())
        foreign = any(place in marked for place in range(begin, end) if not whole[place].isspace())
        if bare or not letters or torch.is_tensor(tokens[number]):
            text = None if torch.is_tensor(tokens[number]) else bare.lower() + (WORD_END if ends_here and bare else "")
            made.append(Piece(columns[number], tokens[number] if text is None else bare.lower(), text, False, foreign))
    firsts = [True, *((one.text is None or one.text.endswith(WORD_END)) for one, _ in pairwise(made))]
    return [Piece(one.column, one.token, one.text, first, one.markup) for one, first in zip(made, firsts)]
