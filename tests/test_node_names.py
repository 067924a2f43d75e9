"""Every text that an artist reads names a node as its title does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from texts_of_code import LANGUAGES, rows, strings_of

from harness.library import ROOT
from harness.locales import file_of

FAMILY = "DreamMatcher"
ENDING = f" ({FAMILY})"
METHODS = ("DreamBooth", "Textual Inversion", "Custom Diffusion")  # a paper's method as well as a node
OTHERS = ("Invert Mask", "Object Prompts", "Live Subject Prompts")  # a node of ComfyUI's, parts of a data set
TEXTS = "texts.js"  # the front end's own sentences
QUOTED = r'"((?:[^"\\\n]|\\.)*)"'


def titles(language: str) -> dict[str, str]:
    """Titles of our nodes, by node."""
    return {name: texts["display_name"] for name, texts in json.loads(file_of(language).read_text(encoding="utf-8")).items()}


def named(text: str, shown: dict[str, str]) -> tuple[set[str], str]:
    """The nodes whose titles stand in a text, and the text without them."""
    text, found = " ".join(text.split()), set()
    for name, title in sorted(shown.items(), key=lambda pair: -len(pair[1])):
        if title in text:
            found.add(name)
            text = text.replace(title, "◆")
    return found, text


def misnamed(text: str, shown: dict[str, str]) -> list[str]:
    """The places of a text that name a node otherwise than its title does.

    They are its former name (*DreamMatcher Apply*), the ending behind another name, and its own words alone: where they are
    several, or one that is written like a name within a sentence.
    """
    _, rest = named(text, shown)
    for other in OTHERS:
        rest = rest.replace(other, "")
    faults = re.findall(r".{0,30}\(DreamMatcher\)", rest)
    for title in shown.values():
        own = title.removesuffix(ENDING)
        if own == title:
            continue
        word = rf"{re.escape(own)}(?![\w-])"
        faults += re.findall(rf"DreamMatcher \(?{word}", rest)
        if own not in METHODS and own.isascii():
            before = r"(?<![\w`])" if " " in own else r"(?:(?<=[a-z,;:\d`◆] )|(?<=[*(]))"
            behind = r"(?:^|(?<=[.!?:|] ))"
            faults += re.findall(rf".{{0,20}}{before}{word}.{{0,20}}", rest)
            faults += re.findall(rf"{behind}{word}(?= (?:shows|does|takes|says|is|has|keeps|and|or) |, [A-Z◆])", rest)
    return faults


def leaves(tree: object) -> Iterator[str]:
    """Every text in what a JSON file holds."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)


def paragraphs(path: Path) -> list[str]:
    """A page's paragraphs, points and rows."""
    return re.split(r"\n\s*\n|\n(?=[-|])", path.read_text(encoding="utf-8"))


def english_texts() -> Iterator[tuple[str, str]]:
    """Everything that an artist reads in ComfyUI, with the file that says it."""
    for folder in ("dreammatcher", "nodes", "toybox"):
        yield from ((str(path), text) for path in (ROOT / folder).rglob("*.py") for text in strings_of(path))
    for path in (ROOT / "web" / "js").glob("*.js"):
        if path.name != TEXTS:  # the languages' own test reads it
            yield from ((str(path), text) for text in re.findall(QUOTED, path.read_text(encoding="utf-8")))
    for path in (*(ROOT / "example_workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")):
        yield from ((str(path), text) for text in leaves(json.loads(path.read_text(encoding="utf-8"))))
    for path in (ROOT / "web" / "docs").glob("*.md"):
        yield from ((str(path), text) for text in paragraphs(path))


def front_end(language: str) -> list[tuple[str, str]]:
    """The sentences of the front end and those of the server: English, and in a language."""
    text = (ROOT / "web" / "js" / TEXTS).read_text(encoding="utf-8")
    part = re.search(rf"^    {language}: \{{\n(.*?)^    \}},", text, re.MULTILINE | re.DOTALL)
    assert part, language
    column = 1 + LANGUAGES.index(language)
    return [*re.findall(rf"{QUOTED}:\s*{QUOTED}", part[1]), *((row[0], row[column]) for row in rows())]


def pairs(tree: dict, other: dict) -> Iterator[tuple[str, str]]:
    """The texts of two locales that stand at the same place."""
    for key, part in tree.items():
        if isinstance(part, dict):
            yield from pairs(part, other[key])
        else:
            yield part, other[key]


@pytest.mark.parametrize(("text", "wrong"), [
    ("From Invert Reference (DreamMatcher). Apply the mask, in Easy (DreamMatcher) too: a mask of Mask (DreamMatcher).", 0),
    ("DreamBooth and Textual Inversion are methods; Textual Inversion (DreamMatcher) is a node.", 0),
    ("From DreamMatcher Apply.", 1), ("DreamMatcher (Easy) is bypassed", 1), ("of Apply (DreamMatcher) or Mask.", 1),
    ("take Training Options: there", 1), ("the *Preview* shows it", 1), ("Reference (DreamMatcher)", 1), ("Preview shows it.", 1),
    ("From SeFi Train (DreamMatcher), SeFi Apply", 1), ("turn it on in DreamMatcher DreamBooth", 1)])
def test_another_form_of_a_name_is_found(text, wrong):
    assert len(misnamed(text, titles("en"))) >= wrong and bool(misnamed(text, titles("en"))) == bool(wrong)


def test_what_an_artist_reads_names_nodes_by_their_titles():
    shown = titles("en")
    assert [(where, fault) for where, text in english_texts() for fault in misnamed(text, shown)] == []


def test_the_documents_have_no_former_names():
    own = "|".join(re.escape(title.removesuffix(ENDING)) for title in titles("en").values() if title.endswith(ENDING))
    for path in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"):
        text = " ".join(path.read_text(encoding="utf-8").split())
        assert re.findall(rf"DreamMatcher \(?(?:{own})\b", text) == [], path.name


@pytest.mark.parametrize("language", LANGUAGES)
def test_other_languages_name_the_same_nodes_by_the_titles_that_they_show(language):
    english, shown = titles("en"), titles(language)
    tree = [json.loads(file_of(each).read_text(encoding="utf-8")) for each in ("en", language)]
    for said, translated in (*pairs(*tree), *front_end(language)):
        assert misnamed(said, english) == misnamed(translated, shown) == [], translated
        assert named(translated, shown)[0] == named(said, english)[0], translated
