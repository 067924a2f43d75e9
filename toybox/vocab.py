"""The Toybox tokenizer: CLIP's byte-pair format with only the merges that the world's words need.

``python -m toybox.vocab`` writes ``toybox/tokenizer``. Every word of the world is one token, any other text falls
apart into letters, so unknown words never fail. As the host requires, the end token is the largest one.
"""

from __future__ import annotations

import json
from pathlib import Path

from .world import CLASSES, COLOURS, SCENES

TOKENIZER_DIR = Path(__file__).with_name("tokenizer")
START, END = "<|startoftext|>", "<|endoftext|>"

#: words beyond the captions' own that prompts and embeddings commonly use
EXTRA_WORDS = ("sks", "the", "with", "toy", "picture", "of", "two", "one")


def words() -> list[str]:
    captions = ["a photo of a and facing left right", *CLASSES, *COLOURS, *SCENES.values(), *EXTRA_WORDS]
    return sorted({word for text in captions for word in text.split()})


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(moved))]


def prefixes() -> list[str]:
    """The pieces that each word is built from, letter by letter, with the word itself as the last token."""
    return [word[:length] if length < len(word) else word + "</w>" for word in words() for length in range(2, len(word) + 1)]


def pieces_of(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The tokens of one word by byte-pair encoding (Sennrich et al. 2016): the pair of lowest rank is merged first."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while pair := min((pair for pair in zip(pieces, pieces[1:]) if pair in ranks), key=ranks.__getitem__, default=None):
        merged, rest = [], pieces
        while rest:
            length = 2 if tuple(rest[:2]) == pair else 1
            merged.append("".join(rest[:length]))
            rest = rest[length:]
        pieces = merged
    return pieces


def merges() -> list[tuple[str, str]]:
    """Merges in order of rank that fold each known word into one token.

    A word's missing merges are appended behind those of the words before it. A merge of higher rank waits for all of lower
    rank, so what comes later never splits an earlier word.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words():
        while len(pieces := pieces_of(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return list(ranks)


def vocabulary() -> list[str]:
    letters = byte_symbols()
    return [*dict.fromkeys([*letters, *(letter + "</w>" for letter in letters), *prefixes()]), START, END]


def write(folder: Path = TOKENIZER_DIR) -> None:
    folder.mkdir(exist_ok=True)
    vocab = {token: index for index, token in enumerate(vocabulary())}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace",
              "add_prefix_space": False, "model_max_length": 77}
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges())]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
