"""Help pages (web/docs) and translations (locales) say what the nodes say."""

from __future__ import annotations

import ast
import json
import re

import pytest
from PIL import Image

from harness.library import ROOT
from harness.locales import english, file_of
from harness.locales import texts as texts_of
from harness.workflow import inputs_of, outputs_of

DOCS = ROOT / "web" / "docs"
TRANSLATIONS = ("zh", "ja", "ko")
LONGEST_PAGE = 60  # lines
LONGEST_WORD = 26  # letters of a name in a list
SHORT = 12  # texts up to this length may be the same word in two languages


@pytest.fixture(scope="module")
def nodes(pack) -> dict[str, type]:
    return pack.module("nodes").NODE_CLASS_MAPPINGS


@pytest.fixture(scope="module")
def names(pack) -> dict[str, str]:
    """The names that the host shows."""
    return pack.module("nodes").NODE_DISPLAY_NAME_MAPPINGS


@pytest.fixture(scope="module")
def texts(nodes, names) -> dict[str, dict]:
    """The texts of the code, in the form of a locale's nodeDefs.json."""
    return texts_of(nodes, names)


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """The part of a node's page under one heading, or nothing."""
    matched = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", page(name), re.MULTILINE | re.DOTALL)
    return matched[1] if matched else ""


def points(name: str, heading: str) -> list[tuple[str, str]]:
    """The list under one heading: what a point is about, with its default, and what it says."""
    parts = [line.removeprefix("- ").partition(" – ") for line in section(name, heading).splitlines() if line.startswith("- ")]
    return [(head, text) for head, _, text in parts]


def shown_input(name: str, declared: tuple) -> str:
    """An input as a page writes it: with its default, if there is one."""
    default = declared[1].get("default")
    return f"`{name}`" + ("" if default is None else " (empty)" if default == "" else f" (`{default}`)")


def locale(language: str) -> dict[str, dict]:
    return json.loads(file_of(language).read_text(encoding="utf-8"))


def leaves(tree: dict | str, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Every text by the keys that lead to it; an empty part counts as one."""
    if isinstance(tree, str):
        return {place: tree}
    if not tree:
        return {place: ""}
    return {key: text for name, part in tree.items() for key, text in leaves(part, (*place, name)).items()}


def code_strings() -> list[str]:
    """Every string in the package's own code; of f-strings the parts between the braces. The front end's too."""
    files = [path for folder in ("dreammatcher", "nodes", "toybox") for path in (ROOT / folder).rglob("*.py")]
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web" / "js").glob("*.js"))
    return re.findall(r"[`\"]([^`\"\n]+)[`\"]", scripts) + [
        part.value for path in files for part in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def test_every_node_has_a_page_and_every_page_a_node(nodes):
    assert {path.stem for path in DOCS.glob("*.md")} == set(nodes)


def test_a_page_bears_the_nodes_name_and_is_short(texts):
    for name, said in texts.items():
        assert page(name).startswith(f"# {said['display_name']}\n"), name
        assert len(page(name).splitlines()) < LONGEST_PAGE, name


def test_a_page_shows_its_node(nodes):
    for name in nodes:
        assert f"](pictures/{name}.jpg)" in page(name), name
        with Image.open(DOCS / "pictures" / f"{name}.jpg") as picture:
            assert picture.width > 200 and picture.height > 60, name
    assert {path.stem for path in (DOCS / "pictures").iterdir()} == set(nodes)


def test_a_page_says_when_the_node_is_needed_what_goes_wrong_and_where_to_look_next(nodes):
    for name in nodes:
        assert "**When you need it:**" in page(name) and "**When not:**" in page(name), name
        assert section(name, "Common mistakes").strip() and section(name, "See also").strip(), name


def test_a_page_lists_the_nodes_inputs_in_order_with_their_defaults(nodes):
    for name, kind in nodes.items():
        wanted = [shown_input(input_name, declared) for input_name, declared in inputs_of(kind).items()]
        assert [head for head, _ in points(name, "Inputs")] == wanted, name
        assert all(text for _, text in points(name, "Inputs")), name


def test_a_page_lists_the_nodes_outputs_in_order(nodes):
    for name, kind in nodes.items():
        assert [head for head, _ in points(name, "Outputs")] == [f"`{output_name}`" for output_name in outputs_of(kind)], name
        assert all(text for _, text in points(name, "Outputs")), name


def test_a_page_fits_the_hosts_narrow_panel():
    """It is 262 pixels wide: a table's last column has no room there, and one long word pushes all the others out."""
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*\|", text, re.MULTILINE), f"{path.name}: a list fits, a table does not"
        assert "```" not in text, f"{path.name}: lines of code do not break"
        for word in re.split(r"[\s-]+", re.sub(r"\]\([^)]*\)", "]", text)):
            assert len(word.strip("`.,;:()\"")) <= LONGEST_WORD, f"{path.name}: {word}"


def test_messages_that_a_page_quotes_are_those_of_the_code(nodes):
    known = code_strings()
    for name in nodes:
        for quoted in re.findall(r'"([^"]+)"', section(name, "Common mistakes")):
            for part in " ".join(quoted.split()).split("…"):
                assert any(part.strip() in text for text in known), f"{name}: no message of the code holds {part.strip()!r}"


def test_the_english_locale_is_the_one_that_python_m_harness_locales_writes(nodes, names):
    assert file_of("en").read_text(encoding="utf-8") == english(nodes, names)


NARROW = 14  # letters that a narrow column shows


def test_the_names_that_are_shown_tell_nodes_apart_by_how_they_begin(nodes, names):
    assert names.keys() == nodes.keys()
    assert names["DreamMatcherApply"] == "Apply (DreamMatcher)" and names["DreamMatcherEasy"] == "Easy (DreamMatcher)"
    for language in (*TRANSLATIONS, "en"):
        shown = [texts["display_name"] for texts in locale(language).values()]
        assert len({name[:NARROW] for name in shown}) == len(shown) and not any(name.startswith("DreamMatcher") for name in shown)


def test_every_node_is_found_by_other_words_and_by_its_former_name(pack, nodes):
    aliases, former = pack.module("nodes.search").ALIASES, pack.module("nodes.search").former_name
    assert former("Apply (DreamMatcher)") == "DreamMatcher Apply"
    assert aliases.keys() == nodes.keys()
    for name, kind in nodes.items():
        assert [former(kind.TITLE), *aliases[name]] == kind.SEARCH_ALIASES, name
        assert len(set(aliases[name])) == len(aliases[name]) >= 2, name


@pytest.mark.parametrize("typed", [
    "ipadapter", "reference", "same character", "consistency", "likeness", "subject", "identity", "appearance", "dreambooth",
    "lora training", "textual inversion", "embedding", "image prompt", "style reference"])
def test_some_node_has_the_word_that_people_type(nodes, typed):
    assert any(typed in kind.SEARCH_ALIASES for kind in nodes.values())


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_has_every_node_input_and_output_and_no_others(texts, language):
    assert leaves(locale(language)).keys() == leaves(texts).keys()


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_leaves_no_sentence_in_english(texts, language):
    english = leaves(texts)
    for place, text in leaves(locale(language)).items():
        sentence = place[-1] in ("tooltip", "description")
        assert text or not english.get(place), f"{language}: {'.'.join(place)} is empty"
        assert not sentence or text != english.get(place) or len(text) <= SHORT, f"{language}: {'.'.join(place)}"


@pytest.mark.parametrize("language", ("en", *TRANSLATIONS))
def test_no_text_holds_what_the_front_ends_translator_takes_for_a_command(language):
    for place, text in leaves(locale(language)).items():
        assert not set(text) & set("{}@|"), f"{language}: {'.'.join(place)}"
