"""Texts that people and their programs write, and words in them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

#: marks at the beginning of a text; UTF-32's begins as UTF-16's does
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(name: str, path: Path) -> str:
    """A text in UTF-8, or in what its mark says. Raises ValueError, naming the input and the file, for any other."""
    try:
        content = path.read_bytes()
        encoding = next((known for mark, known in MARKS if content.startswith(mark)), "utf-8")
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path.name} is no text in UTF-8 ({error.reason} at byte {error.start}); open it in an editor "
                         "and save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{name}: {path.name} cannot be read ({error})") from error
    if "\0" in text:
        raise ValueError(f"{name}: {path.name} is no text in UTF-8 (it holds zeros, as UTF-16 without its mark does); open it in "
                         "an editor and save it as UTF-8")
    return text


def alone(word: str) -> str:
    """A pattern of ``word`` where it stands alone: "sks" is not in "risks"."""
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def holds(caption: str, word: str) -> bool:
    """True if ``word`` stands alone in ``caption``."""
    return bool(word) and re.search(alone(word), caption) is not None
