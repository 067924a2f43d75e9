"""What the server says to an artist, and which of it speaks English alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from texts_of_code import rows, strings_of, without_values

from harness.library import ROOT

#: where nodes and their methods say something; the commands of a terminal are English
SPEAKING = ("dreammatcher/*.py", "dreammatcher/backbones/*.py", "dreammatcher/host/**/*.py", "dreammatcher/matching/*.py",
            "dreammatcher/training/*.py", "dreammatcher/vico/*.py", "dreammatcher/sefi/*.py",
            "dreammatcher/evaluation/encoders.py", "nodes/missing.py", "toybox/host.py", "toybox/scores.py",
            "toybox/transformer.py", "toybox/world.py")
#: sentences without a translation, one a line, under headings that say why
ENGLISH = ROOT / "tests" / "fixtures" / "said_in_english.txt"
NO_SENTENCE = re.compile(r" -> |\(\?|^\s|<[a-z]+>|^[^a-z]*$|https?:|^DreamMatcher: |"
                         r"^(a|the) (\S+ )*(photo|painting|rendition|rendering) (of|in)")
WORD = re.compile(r"(?<![\w.])[A-Za-z][a-z']+(?![\w.])")


def sentences() -> set[str]:
    """Texts of at least three words: no formulas, patterns and captions, and not what is only logged."""
    files = {path for pattern in SPEAKING for path in ROOT.glob(pattern)}
    texts = {without_values(text).replace("\n", " ") for path in files for text in strings_of(path)}
    return {text for text in texts | set(in_place_of_a_bypass()) if len(WORD.findall(text)) >= 3 and not NO_SENTENCE.search(text)}


def in_place_of_a_bypass() -> list[str]:
    """What nodes say to do where they are bypassed; the other texts in their files are in the locales."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "nodes").glob("*.py")]
    return [ast.literal_eval(part.value) for tree in trees for part in ast.walk(tree)
            if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "INSTEAD"]


def listed(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_every_sentence_that_is_translated_is_one_of_the_code():
    said = {without_values(text) for folder in ("dreammatcher", "nodes", "toybox") for path in (ROOT / folder).rglob("*.py")
            for text in strings_of(path)}
    assert len({without_values(row[0]) for row in rows()}) == len(rows()), "a sentence is translated twice"
    assert len(rows()) > 300 and [row[0] for row in rows() if without_values(row[0]) not in said] == []


def test_every_sentence_of_the_code_is_translated_or_listed_as_english():
    translated = {without_values(row[0]).replace("\n", " ") for row in rows()}
    english = listed(ENGLISH)
    assert sorted(sentences() - translated - set(english)) == [], "translate these in web/js/said, or list them"
    assert sorted(set(english) - sentences()) == [] == sorted(set(english) & translated), "these need not be listed any more"
