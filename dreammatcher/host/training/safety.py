"""Safety states of trainings in the host's output folder: finds the one to go on from, and removes those no longer needed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths

from ...training import state as states
from ...training.state import Checkpoint
from ..graph.notes import tell

log = logging.getLogger(__name__)

FOLDER = "dreammatcher/training"
#: our files there, and what a killed process leaves of one that it was writing
OURS = re.compile(r"[0-9a-f]{32}\.safetensors(\.[0-9a-f]{8}\.part)?")
DAY = 24 * 60 * 60  # seconds
#: a state is removed when nobody has gone on with its run for so many days,
DAYS = 14
#: and the oldest ones, but none of the last day, while those of other runs take more than so many bytes together
ROOM = 50 * 10**9


def path_of(job: str) -> Path:
    """Path of a training's state. Each training has one file, which its next state replaces."""
    return Path(folder_paths.get_output_directory()) / FOLDER / f"{job[:32]}.safetensors"


def begin(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The state that a run goes on from, or None.

    It is the run's own, or that of the same training at another rate or precision which gave up since its losses were not
    finite. Raises ValueError if the run's own file is damaged.
    """
    state = states.read(checkpoint.path, checkpoint.job)
    if state is not None:
        log.info("DreamMatcher: goes on after step %d, from %s", state["step"], checkpoint.path)
        return state
    for path in _stuck(checkpoint):
        kept = states.read(path, states.about(path).job)
        if kept is not None:
            tell(f"goes on after step {kept['step']} of this training at another rate or precision, which gave up since losses "
                 f"were not finite; delete {path} to begin anew")
            return kept
    return None


def _stuck(checkpoint: Checkpoint) -> Iterator[Path]:
    """States of runs that gave up and differ from this one in rate or precision alone, the newest first."""
    for path in sorted(checkpoint.path.parent.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime):
        try:
            about = states.about(path)
        except (ValueError, OSError):
            continue
        if checkpoint.kin and about.kin == checkpoint.kin and about.stuck and path != checkpoint.path:
            yield path


def own(job: str, kin: str) -> bool:
    """True if there is a state that :func:`begin` goes on from."""
    checkpoint = Checkpoint(path_of(job), job, kin=kin)
    return checkpoint.path.is_file() or any(_stuck(checkpoint))


def all_states() -> list[Path]:
    """All states of runs that were stopped."""
    return [path for path in path_of("").parent.glob("*.safetensors") if OURS.fullmatch(path.name)]


def forget(checkpoint: Checkpoint, source: Path | None = None) -> None:
    """Removes the states of a run that has reached its end, and the one of its ``source`` that it went on from."""
    for path in (checkpoint.path, *list(_stuck(checkpoint)), *([source] if source else [])):
        _remove(path)


def prune(current: Path) -> None:
    """Removes states of other runs that nobody goes on with, as :data:`DAYS` and :data:`ROOM` say, and tells which."""
    if not current.parent.is_dir():
        return
    states_there = [(path.stat(), path) for path in current.parent.iterdir() if OURS.fullmatch(path.name) and path != current]
    taken, removed = 0, []
    for stat, path in sorted(states_there, key=lambda pair: -pair[0].st_mtime):
        days = (time.time() - stat.st_mtime) / DAY
        taken += stat.st_size
        useless = days > (1 if path.suffix == ".part" else DAYS)
        if (useless or days > 1 and taken > ROOM) and _remove(path):
            taken -= stat.st_size
            removed.append(f"{path.name} ({states.in_words(stat.st_size)}, {days:.0f} days old)")
    if removed:
        tell(f"removed states of stopped trainings that nobody went on with from {current.parent}: {', '.join(removed)}. "
             f"States are kept for {DAYS} days, and beyond {states.in_words(ROOM)} together the oldest go")


def _remove(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("DreamMatcher: %s cannot be removed (%s); delete it by hand", path, error)
        return False
    return True
