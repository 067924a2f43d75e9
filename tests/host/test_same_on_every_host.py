"""Every host draws the same pictures: what the packaged one computed is compared on whatever host runs."""

from __future__ import annotations

import json

import pytest
from transformers import CLIPTokenizer, CLIPTokenizerFast

from harness.examples import EXAMPLES
from harness.numbers import FILE, TOYBOX_EXAMPLES, numbers
from toybox.vocab import TOKENIZER_DIR, words

KNOWN = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", [CLIPTokenizer, CLIPTokenizerFast])
def test_every_word_is_one_token_for_the_tokenizers_of_transformers(kind):
    tokenizer = kind.from_pretrained(TOKENIZER_DIR)
    vocabulary = json.loads((TOKENIZER_DIR / "vocab.json").read_text(encoding="utf-8"))
    sentence = tokenizer(" ".join(words()))["input_ids"]
    assert sentence[1:-1] == [vocabulary[word + "</w>"] for word in words()]


@pytest.mark.parametrize("name", TOYBOX_EXAMPLES)
def test_an_example_has_the_conditioning_and_latents_of_the_packaged_host(host, name):
    computed = numbers(host, name)
    for part in ("conditioning", "latents"):
        assert computed[part].keys() == KNOWN[name][part].keys(), "run python -m harness.numbers"
        for key, values in KNOWN[name][part].items():
            size = max(map(abs, values))
            assert computed[part][key] == pytest.approx(values, abs=2e-3 * size), f"{part} of {key!r}"


def test_every_toybox_example_is_compared():
    assert set(KNOWN) == {name for name in EXAMPLES if "toybox" in name} - {"dreammatcher_15_learn_easy_toybox"}
