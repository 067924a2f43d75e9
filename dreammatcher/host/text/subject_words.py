"""The words of a prompt that name its subject, for prompts in which nobody named it.

Tag prompts (`1girl, red hair, looking at viewer`) have no one word for their subject: all words count that show something, but
for those that say what kind of picture it is (`an oil painting of`) and where it plays (`in the desert`, `outdoors`). On Toybox a
foreground from all content words matches as well as one from the named word, and better than the reference's own foreground
carried over by the match (docs/measured.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from .words import WORD_END, Piece, Text

#: words in front of a noun that begin no new phrase
_DETERMINERS = "a an the this that these those some any no his her its their my your our each every"
#: English words that show nothing
_FUNCTION_WORDS = f"""
    {_DETERMINERS} by for of with without and or but as is are was were be been being it he she they who which there here
    very while where when up next front top middle
"""
#: behind these, up to the end of the phrase, stands a place or a time
_BEFORE_PLACES = """
    in on at to from into onto over under behind beside between near inside outside against among amid across along through around
    above below beneath underneath atop upon within during towards toward by
"""
#: words about the picture's quality and rating, as Illustrious, NoobAI and Pony were trained with
_QUALITY_WORDS = """
    masterpiece best amazing great good normal high highest worst low quality absurdres highres lowres newest recent aesthetic
    detailed score up rating general sensitive questionable explicit safe source
"""
#: words about what kind of picture it is
_MEDIUM_WORDS = """
    photo photos photograph photography photographic picture pictures image images painting drawing sketch illustration
    artwork art render rendering rendition portrait close closeup shot snapshot selfie polaroid film cinematic oil watercolor
    watercolour acrylic gouache pastel pencil charcoal ink comic manga anime cartoon digital concept style styled view cropped
    bokeh dslr lens macro hd uhd hdr 4k 8k 3d 2d cgi realistic photorealistic hyperrealistic photorealism wallpaper poster
    depth field blurry blurred sharp focus
"""
#: words about where and when it plays, as tags say it
_SCENE_WORDS = """
    outdoors indoors outside inside background backgrounds scenery scene landscape cityscape seascape skyline sky skies cloud
    clouds cloudy sunset sunrise dawn dusk night nighttime day daytime daylight evening morning noon twilight beach desert
    forest jungle woods mountain mountains hill hills valley ocean sea lake river waterfall street road city town village park
    garden meadow grass grassland snow snowy rain rainy fog foggy mist room bedroom kitchen bathroom classroom studio lighting
    light lights sunlight moonlight backlighting underwater winter summer spring autumn
"""


def _all(*lists: str) -> frozenset[str]:
    return frozenset(word for words in lists for word in words.split())


LEFT_OUT = _all(_FUNCTION_WORDS, _BEFORE_PLACES, _QUALITY_WORDS)
MEDIUM, SCENE = _all(_MEDIUM_WORDS), _all(_SCENE_WORDS)
DETERMINERS, BEFORE_PLACES = _all(_DETERMINERS), _all(_BEFORE_PLACES)
#: the word in front goes with these: white background, blue sky
HEADS = frozenset(("background", "backgrounds", "sky", "lighting", "style"))
#: these go on with a phrase: in the forest and mountains, in front of a castle
GOES_ON = frozenset(("and", "or", "of", "-", "_", "'s", "front", "top", "middle"))
ONLY_SCENE = "the prompt names a place and no subject in it"
ONLY_MEDIUM = "the prompt names nothing but a kind of picture"


@dataclass(frozen=True)
class ContentWord:
    """One word that shows something, and its token columns."""

    spelling: str  # a name of its own for the vectors of an embedding
    columns: tuple[int, ...]
    medium: bool = False
    scene: bool = False


def content_words(text: Text) -> list[ContentWord]:
    """The words of a prompt that show something, in their order; embeddings count, what other programs would replace does not.

    Where a tokenizer does not spell its tokens, every token counts.
    """
    words: list[list[Piece]] = []
    for piece in text.pieces:
        words.append([piece]) if piece.first else words[-1].append(piece)
    content: list[ContentWord] = []
    phrase, together = _Phrase(), False
    for pieces in words:
        word, markup = _spelling(pieces), any(piece.markup for piece in pieces)
        scene = phrase.takes(None if word is None else word.lower()) and not markup
        if markup or (word is not None and not _shows_something(word)):
            together = False
            continue
        lower = "" if word is None else word.lower()
        if together and lower in HEADS:
            content[-1] = replace(content[-1], scene=True)
        together = True
        content.append(ContentWord(word or _name_of(pieces), tuple(piece.column for piece in pieces), lower in MEDIUM,
                                   scene or lower in SCENE))
    return content


def subject_words(text: Text) -> tuple[list[ContentWord], str]:
    """The content words but those about medium and scene. If there are no others these are taken, with a remark."""
    content = content_words(text)
    for kept, said in (([word for word in content if not word.medium and not word.scene], ""),
                       ([word for word in content if not word.medium], ONLY_SCENE), (content, ONLY_MEDIUM)):
        if kept:
            return kept, said
    return [], ""


class _Phrase:
    """Tells word by word whether a prompt is within a phrase of place: behind a preposition, up to what ends it."""

    def __init__(self) -> None:
        self.inside = self.has_noun = self.hyphen = False

    def takes(self, word: str | None) -> bool:
        """True if ``word`` belongs to such a phrase. None stands for an embedding."""
        hyphen, self.hyphen = self.hyphen, word in ("-", "_")
        if hyphen and word in LEFT_OUT:  # k-on
            return self.inside
        if word in BEFORE_PLACES:
            self.inside, self.has_noun = True, False
        elif word == "of":
            self.has_noun = False
        elif word in DETERMINERS:
            self.inside = self.inside and not self.has_noun
        elif word is None or (_shows_something(word) and word not in GOES_ON):
            self.has_noun = True
            return self.inside
        elif word not in GOES_ON:
            self.inside = False
        return False


def _spelling(pieces: list[Piece]) -> str | None:
    spelled = [piece.text.removesuffix(WORD_END) for piece in pieces if piece.text is not None]
    return "".join(spelled) if len(spelled) == len(pieces) else None


def _name_of(pieces: list[Piece]) -> str:
    """A name for what has no spelling: the same for the same vectors."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.token.float().cpu().numpy().tobytes() if torch.is_tensor(piece.token) else str(piece.token).encode())
    return f"(embedding {digest.hexdigest()[:4]})" if any(map(torch.is_tensor, (piece.token for piece in pieces))) else \
        f"(token {pieces[0].token})"


def _shows_something(word: str) -> bool:
    if len(word) == 1 and word.isascii():
        return False
    return any(letter.isalpha() for letter in word) and word.lower() not in LEFT_OUT
