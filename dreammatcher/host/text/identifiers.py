"""Rare words of a model's own vocabulary, to name a subject by (Ruiz et al. 2023, Sec. 3.2)."""

from __future__ import annotations

import random
import re

from .words import WORD_END

#: of CLIP's vocabulary, which is ordered by how often pieces occur; the later ones are rare
RARE_FROM = 40_000
#: three or four consonants: a token of these is no English word
SHAPE = re.compile(rf"[b-df-hj-np-tv-xz]{{3,4}}{re.escape(WORD_END)}")
DEFAULT = "sks"


def rare_word(clip, seed: int) -> str:
    """A word that is one rare token of ``clip``'s first tokenizer, drawn by ``seed``; "sks" where the vocabulary has none."""
    name, chunks = next(iter(clip.tokenize("").items()))
    tokenizer = getattr(clip.tokenizer, f"clip_{name}", None)
    inner = getattr(tokenizer, "tokenizer", None)
    vocabulary = {} if inner is None else inner.get_vocab()
    rare = sorted(token.removesuffix(WORD_END) for token, number in vocabulary.items()
                  if number >= RARE_FROM and SHAPE.fullmatch(token))
    return random.Random(seed).choice(rare) if rare else DEFAULT
