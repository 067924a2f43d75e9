"""Records the state of files on disk, so that the host runs a node again when they change.

The host asks a node's ``IS_CHANGED`` before it runs what comes before it: a value that comes by a link is None, in every queue on
newer hosts and in the first one on older ones. A node does not know then which of its files is meant, and gives the state of
all of them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

#: whether the host knows a linked value from the second queue on; newer ones never say it
TOLD_LATER = importlib.util.find_spec("comfy_execution") is None


class Changes(dict):
    """Digests of files or folders by the digest of their name. Two of them are equal when all that both know is the same.

    So older hosts, which know of a linked value from the second queue on, see that it is what it was. The names are digests since
    hosts write this into the pictures they save.
    """

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and all(self[name] == other[name] for name in self.keys() & other.keys())

    def __ne__(self, other: object) -> bool:
        return not self == other


def changes(files: Mapping[str, Iterable[Path]]) -> Changes:
    """Digests of the paths, sizes and times of the files of each name. A missing file is recorded as missing."""
    return Changes({_digest(name): _digest("\n".join(sorted(map(_state, paths)))) for name, paths in files.items()})


def changes_of_all(files: Mapping[str, Iterable[Path]]) -> Changes:
    """The state of all files that a linked value could mean: by name on hosts that learn the value later, else as one digest.

    Hosts write this value into every picture, and a folder may hold thousands of files.
    """
    changed = changes(files)
    return changed if TOLD_LATER else Changes({"": _digest(json.dumps(sorted(changed.items())))})


def _state(path: Path) -> str:
    try:
        known = path.stat()
    except OSError:
        return f"{path}:none"
    return f"{path}:{known.st_size}:{known.st_mtime_ns}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
