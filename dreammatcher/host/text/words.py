"""Finds the tokens of a prompt that a subject word means, and the columns of the conditioning that they become.

A token is a column, but for vectors of another width than the text encoder's words: the host leaves these out, and what stands
behind them in the same chunk of 77 moves to the left. A word is looked for as its tokens. Where it does not stand as it is, the
obvious is taken, with a remark: its plural or singular, tokens inside a longer word, or, in scripts without upper and lower case,
a part of a text without spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import accumulate

import torch

from . import other_encoders
from .markup import TAG, Markup, bare
from .pieces import WORD_END, Piece, Place

#: endings of English nouns, singular and plural, behind which more than an s changes
ENDINGS = (("y", "ies"), ("f", "ves"), ("fe", "ves"), *((hiss, hiss + "es") for hiss in ("s", "x", "z", "ch", "sh", "o")))
BETWEEN_WORDS = r"[\s,.:;!?()\[\]{}|、。，．：；！？（）]+"
SHORTEST = 3  # letters of a singular; "a" is none of "as"


@dataclass(frozen=True, eq=False)
class Text:
    """A prompt, or a word, as one of a CLIP's text encoders reads it."""

    pieces: list[Piece]
    length: int  # of the conditioning
    tower: str  # the key of the text encoder's tokens
    left_out: int = 0  # vectors of embeddings that do not fit the text encoder

    @staticmethod
    def of(clip, text: str, tower: str | None = None) -> Text:
        """The text as ``tower`` reads it; without one, as the first text encoder does."""
        cut = clip.tokenize(text, return_word_ids=True)
        tower = next(iter(cut)) if tower is None else tower
        if not other_encoders.is_clip(tower):
            return Text(other_encoders.pieces(clip, text, tower), other_encoders.length(cut, tower), tower)
        width, length, entries, left_out = width_of(clip, tower), 0, [], 0
        for chunk in cut[tower]:
            kept = as_encoded(chunk, width)
            entries += [(length + place, entry[0]) for place, entry in enumerate(kept) if entry[2]]
            length, left_out = length + len(chunk), left_out + len(chunk) - len(kept)
        tokens = [token for _, token in entries]
        foreign, spelled = _foreign(clip, text, tower, tokens), _spelled(clip, tokens)
        ends = [True, *(spelling is None or spelling.endswith(WORD_END) for spelling in spelled)]
        pieces = [Piece(column, token, spelling, first, number in foreign)
                  for number, ((column, token), spelling, first) in enumerate(zip(entries, spelled, ends))]
        return Text(pieces, length, tower, left_out)

    @staticmethod
    def all_of(clip, text: str) -> list[Text]:
        """The text as each text encoder reads it of which the prompt is made: SDXL has two, Flux one beside CLIP.

        Raises UnknownEncoder where it is not known which token becomes which column.
        """
        begins = other_encoders.starts(clip, clip.tokenize(text))
        return [Text.of(clip, text, tower).from_column(begin) for tower, begin in begins.items()]

    def from_column(self, begin: int) -> Text:
        """The text behind another one in the same conditioning."""
        return replace(self, length=self.length + begin, pieces=[
            replace(piece, column=piece.column + begin) for piece in self.pieces]) if begin else self

    def runs(self, other: Text) -> list[int]:
        """Numbers of the pieces at which the tokens of ``other`` begin."""
        count = len(other.pieces)
        return [start for start in range(len(self.pieces) - count + 1) if count and all(
            mine.is_like(theirs) for mine, theirs in zip(self.pieces[start:start + count], other.pieces))]

    def whole(self, other: Text) -> list[int]:
        """Numbers of the pieces at which the tokens of ``other`` begin, if they begin a word."""
        return [start for start in self.runs(other) if self.pieces[start].first]

    def spots(self, other: Text) -> list[range]:
        """Numbers of the pieces at every place of whole words that are those of ``other``."""
        if not other_encoders.is_clip(self.tower):
            return other_encoders.spans(self.pieces, other.pieces, True)
        return [range(start, start + len(other.pieces)) for start in self.whole(other)]

    def place(self, starts: list[int], count: int, remark: str = "", word: str = "") -> Place:
        """The columns of ``count`` tokens from each start, as :meth:`at`."""
        return self.at([range(start, start + count) for start in starts], remark, word)

    def at(self, spots: list[range], remark: str = "", word: str = "") -> Place:
        """The columns of the pieces of these numbers. What stands in markup counts only where nothing else does."""
        outside = [spot for spot in spots if not any(self.pieces[number].markup for number in spot)]
        if not outside and not remark:
            remark = f"{word!r} stands only in what other programs would replace, and ComfyUI reads as words"
        return Place(tuple(sorted({self.pieces[number].column for spot in outside or spots for number in spot})), remark)


def width_of(clip, tower: str) -> int | None:
    """Numbers of a word's vector in one text encoder, None where that is not known."""
    model = getattr(getattr(clip, "cond_stage_model", None), f"clip_{tower}", None)
    transformer = getattr(model, "transformer", None)
    return None if transformer is None else transformer.get_input_embeddings().weight.shape[1]


def as_encoded(chunk: list[tuple], width: int | None) -> list[tuple]:
    """The entries of a chunk of tokens that a text encoder of this width takes."""
    return [entry for entry in chunk if width is None or not torch.is_tensor(entry[0]) or entry[0].shape[-1] == width]


def as_columns(chunk: list[tuple], width: int | None) -> list[tuple]:
    """The entries of a chunk in the order in which they become columns: padding stands in for what is left out."""
    kept = as_encoded(chunk, width)
    return kept + [chunk[-1]] * (len(chunk) - len(kept))


def _foreign(clip, text: str, tower: str, tokens: list) -> frozenset[int]:
    """Numbers of those of a text's tokens that belong to markup.

    They are the ones with its weight where the same text is cut with one. Its brackets may cut punctuation at the ends otherwise,
    so both are aligned. In a text whose own brackets are open, all that is cut like the markup is taken for it.
    """
    markup = Markup.of(text)
    if not markup.parts:
        return frozenset()
    tagged, parts = _cut(clip, markup.tagged, tower), [_cut(clip, part, tower) for part in markup.parts]
    mine, theirs, *alone = ([_comparable(token) for token in each] for each in (
        tokens, [token for token, _ in tagged], *([token for token, _ in part] for part in parts)))
    if sum(weight == TAG for _, weight in tagged) == sum(map(len, alone)):
        blocks = SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks()
        return frozenset(block.a + offset for block in blocks for offset in range(block.size)
                         if tagged[block.b + offset][1] == TAG)
    return frozenset(start + offset for part in alone for start in range(len(mine) - len(part) + 1)
                     if part and mine[start:start + len(part)] == part for offset in range(len(part)))


def _cut(clip, text: str, tower: str) -> list[tuple]:
    """Tokens of a text that the text encoder takes, without start, end and padding, and their weights."""
    width = width_of(clip, tower)
    return [entry[:2] for chunk in clip.tokenize(text, return_word_ids=True)[tower]
            for entry in as_encoded(chunk, width) if entry[2]]


def _comparable(token: int | torch.Tensor) -> int | bytes:
    return token.float().cpu().numpy().tobytes() if torch.is_tensor(token) else token


def find(clip, text: Text, prompt: str, word: str) -> Place | None:
    """Every place of ``word`` in ``prompt``, which ``text`` is, or None.

    A weight and brackets of the word itself do not count. Raises ValueError when two different words of the prompt could be
    meant.
    """
    searched = word if text.spots(Text.of(clip, word, text.tower)) else bare(word) or word
    if (place := _find(clip, text, prompt, searched)) is not None:
        return place
    spaced = " ".join(bare(word).split("_")).strip()  # tags are written with either
    place = _find(clip, text, prompt, spaced) if " " in spaced else None
    return place and replace(place, remark=f"{word!r} is taken as {spaced!r}, which is in the prompt")


def _find(clip, text: Text, prompt: str, word: str) -> Place | None:
    wanted = Text.of(clip, word, text.tower)
    if _without_case(word) and all(piece.text is not None for piece in wanted.pieces):
        return _spelled_alike(text, wanted, prompt, word)
    if spots := text.spots(wanted):
        return text.at(spots, word=word)
    return _beside_punctuation(text, wanted, word) or _other_number(clip, text, word) or _inside_a_word(text, wanted, word)


def other_numbers(word: str) -> list[str]:
    """Possible plurals or singulars of an English noun, in lower case."""
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
        wanted = Text.of(clip, candidate, text.tower)
        if spots := text.spots(wanted):
            places[candidate] = text.at(spots, f"{word!r} is taken as {candidate!r}, which is in the prompt")
    if len(places) > 1:
        raise ValueError(f"subject_words: {word!r} could be {' or '.join(map(repr, places))} of the prompt; write the one that "
                         "you mean")
    return next(iter(places.values()), None)


def _beside_punctuation(text: Text, wanted: Text, word: str) -> Place | None:
    """A word that ends or begins with punctuation, which becomes one token with the punctuation beside it: ``k-on!,``"""
    letters = [number for number, piece in enumerate(wanted.pieces) if any(map(str.isalnum, _spelling(piece)))]
    if not letters or not other_encoders.is_clip(text.tower) or any(piece.text is None for piece in wanted.pieces):
        return None
    core = Text(wanted.pieces[letters[0]:letters[-1] + 1], wanted.length, wanted.tower)
    before, behind = ("".join(map(_spelling, pieces)) for pieces in
                      (wanted.pieces[:letters[0]], wanted.pieces[letters[-1] + 1:]))
    starts, count = text.whole(core), len(core.pieces)
    exact = [start for start in starts if _meets(text, start - 1, before, str.endswith)
             and _meets(text, start + count, behind, str.startswith)]
    if exact:
        first, more = int(bool(before)), int(bool(behind))
        return text.place([start - first for start in exact], first + count + more, word=word)
    plain = "".join(map(_spelling, core.pieces))
    if not starts or len(plain) < SHORTEST:
        return None
    return text.place(starts, count, f"{word!r} is taken as {plain!r}, which is in the prompt")


def _meets(text: Text, number: int, marks: str, how: Callable[[str, str], bool]) -> bool:
    """True if the token beside a word holds the punctuation that belongs to it."""
    return not marks or (0 <= number < len(text.pieces) and how(_spelling(text.pieces[number]), marks))


def _inside_a_word(text: Text, wanted: Text, word: str) -> Place | None:
    remark = f"{word!r} is taken inside a longer word of the prompt"
    if not other_encoders.is_clip(text.tower):
        spots = other_encoders.spans(text.pieces, wanted.pieces, False)
        return text.at(spots, remark) if spots else None
    starts = text.runs(wanted)
    return text.place(starts, len(wanted.pieces), remark) if starts else None


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
    """True if a word consists of letters without upper and lower case, with their marks and digits."""
    kinds = {unicodedata.category(letter) for letter in word}
    return "Lo" in kinds and kinds <= {"Lo", "Lm", "Mn", "Mc", "Nd"}


def _spelling(piece: Piece) -> str:
    """The letters that a token spells; a space, which no letter is, where they are not known."""
    return " " if piece.text is None else piece.text.removesuffix(WORD_END)


def _spelled(clip, tokens: list) -> list[str | None]:
    """The vocabulary's spelling of each token; None for vectors, and for every token if a tokenizer does not give spellings."""
    numbers = [token for token in tokens if isinstance(token, int)]
    try:
        spelled = iter([text for _, text in clip.tokenizer.untokenize([(number, 1.0) for number in numbers])])
    except (AttributeError, KeyError, TypeError):
        return [None] * len(tokens)
    return [next(spelled) if isinstance(token, int) else None for token in tokens]
