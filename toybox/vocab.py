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


def merges() -> list[tuple[str, str]]:
    """Left-to-right merges that fold each known word into one token."""
    found: dict[tuple[str, str], None] = {}
    for word in words():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            found[(pieces[0], pieces[1])] = None
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return list(found)


def vocabulary() -> list[str]:
    letters = byte_symbols()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges())]
    return [*dict.fromkeys(tokens), START, END]


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
