"""Captions of a subject's pictures while it is learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..texts import holds

#: the prompts of CLIP's ImageNet evaluation that Textual Inversion and ViCo draw from
OBJECT_TEMPLATES = tuple(
    f"{head} {{}}" for head in (
        "a photo of a", "a rendering of a", "a cropped photo of the", "the photo of a", "a photo of a clean",
        "a photo of a dirty", "a dark photo of the", "a photo of my", "a photo of the cool", "a close-up photo of a",
        "a bright photo of the", "a cropped photo of a", "a photo of the", "a good photo of the", "a photo of one",
        "a close-up photo of the", "a rendition of the", "a photo of the clean", "a rendition of a", "a photo of a nice",
        "a good photo of a", "a photo of the nice", "a photo of the small", "a photo of the weird", "a photo of the large",
        "a photo of a cool", "a photo of a small"))
STYLE_TEMPLATES = tuple(
    f"{head} in the style of {{}}" for head in (
        "a painting", "a rendering", "a cropped painting", "the painting", "a clean painting", "a dirty painting",
        "a dark painting", "a picture", "a cool painting", "a close-up painting", "a bright painting", "a cropped painting",
        "a good painting", "a close-up painting", "a rendition", "a nice painting", "a small painting", "a weird painting",
        "a large painting"))
#: DreamBooth's one caption (Ruiz et al. 2023, Sec. 3.2)
DREAMBOOTH_TEMPLATES = ("a photo of a {}",)
TEMPLATES = {"photo": DREAMBOOTH_TEMPLATES, "object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}


@dataclass(frozen=True)
class Naming:
    """The subject's name in captions: a rare word and its class, as "sks dog". Either may be empty."""

    identifier: str = "sks"
    class_word: str = ""
    templates: tuple[str, ...] = DREAMBOOTH_TEMPLATES

    def __post_init__(self) -> None:
        if not (self.identifier or self.class_word).strip():
            raise ValueError("identifier and class_word: both are empty, so nothing would name the subject; give one of them")
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            raise ValueError(f"templates: {wrong[0] if wrong else 'there is none'!r}; each needs exactly one {{}} where the "
                             "subject is named")

    @property
    def subject(self) -> str:
        return " ".join(part for part in (self.identifier, self.class_word) if part)

    def called(self, captions: Iterable[str]) -> str:
        """The name that most ``captions`` with the identifier use: identifier and class, or the identifier alone."""
        with_identifier = [caption for caption in captions if holds(caption, self.identifier)]
        in_full = sum(holds(caption, self.subject) for caption in with_identifier)
        return self.subject if 2 * in_full >= len(with_identifier) else self.identifier

    def captions(self) -> tuple[str, ...]:
        """Captions to draw from for the subject's pictures."""
        return tuple(template.format(self.subject) for template in self.templates)

    def prior_captions(self) -> tuple[str, ...]:
        """Captions for pictures of the class. Raises ValueError without a class word."""
        if not self.class_word:
            raise ValueError("class_word: it is empty, and prior preservation needs pictures of the subject's class; give the "
                             "class, as dog, or train without a prior")
        return tuple(template.format(self.class_word) for template in self.templates)
