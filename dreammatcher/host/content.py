"""The words of a prompt that say what is to be seen, for prompts in which nobody named the subject.

Tag prompts (`1girl, red hair, looking at viewer`) have no one word for their subject. On Toybox a foreground from all content
words matches as well as one from the named word, and better than the reference's own foreground carried over by the match
(docs/measured.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from .words import WORD_END, Piece, Text

#: English words that show nothing
_FUNCTION_WORDS = """
    a an the this that these those some any of in on at to by for from with without into onto over under behind between beside
    near and or but as is are was were be been being it its his her their my your our he she they who which there here very
"""
#: words about the picture's quality and rating, as Illustrious, NoobAI and Pony were trained with
_QUALITY_WORDS = """
    masterpiece best amazing great good normal high highest worst low quality absurdres highres lowres newest recent aesthetic
    detailed score up rating general sensitive questionable explicit safe source
"""
LEFT_OUT = frozenset(_FUNCTION_WORDS.split()) | frozenset(_QUALITY_WORDS.split())


@dataclass(frozen=True)
class ContentWord:
    """One content word: its spelling, None for an embedding, and its token columns."""

    spelling: str | None
    columns: tuple[int, ...]


def content_words(text: Text) -> list[ContentWord]:
    """The content words of a prompt in their order; embeddings count.

    Where a tokenizer does not spell its tokens, every token counts.
    """
    words: list[list[Piece]] = []
    for piece in text.pieces:
        words.append([piece]) if piece.first else words[-1].append(piece)
    spelled = [ContentWord(_spelling(pieces), tuple(piece.column for piece in pieces)) for pieces in words]
    return [word for word in spelled if word.spelling is None or _shows_something(word.spelling)]


def shared_words(texts: list[Text]) -> list[str]:
    """The content words that stand in every text, in the order of the first; embeddings are left out."""
    spelled = [dict.fromkeys(word.spelling for word in content_words(text) if word.spelling) for text in texts]
    return [word for word in spelled[0] if all(word in others for others in spelled[1:])]


def _spelling(pieces: list[Piece]) -> str | None:
    if any(piece.text is None for piece in pieces):
        return None
    return "".join(piece.text.removesuffix(WORD_END) for piece in pieces)


def _shows_something(word: str) -> bool:
    if len(word) == 1 and word.isascii():
        return False
    return any(letter.isalpha() for letter in word) and word.lower() not in LEFT_OUT
