"""Picks a step that a training has kept on its way."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch

from ...files import read_metadata, read_tensors, refused_if_damaged
from ...training.bundle import rows_of
from ...training.export import Learned
from ...training.metadata import without_own
from ...training.sheet import read_page
from ..graph.changes import Changes, changes, changes_of_all
from ..graph.notes import tell
from ..graph.pictures import image_of, text_image
from .keep import WORDS, Files
from .kept import FOLDER, RECORD, RUN, SHEET, Run, run_called
from .lora_file import taken_by

HOW = "Set keep_every in Training Options (DreamMatcher)"
AGAIN = "train again, or choose another step"
#: in the head of a file of our own LoRAs and embeddings; ViCo's and SeFi-IDE's have others
PLAIN = "pt"


def choose(model, clip, run_name: str, step: int, learned: Learned | None) -> tuple[Learned, Run | None, str]:
    """Finds what a run had learned at a step; returns it, the run, and a text about it.

    An empty ``run_name`` is the run of ``learned``; step 0 is what is learned, or else the last step that was kept. Raises
    ValueError, naming what there is, for runs and steps that are not there, and for files of another kind of model.
    """
    name = run_name.strip() or (learned.about.get(RUN, "") if learned is not None else "")
    if not name:
        return _without_run(step, learned), None, "the end of the training; no step was kept on the way"
    run = run_called(name)
    steps = run.steps()
    if not steps:
        raise ValueError(f"run_name: no run called {name!r} has kept a step; there {_names_of_runs()}. "
                         f"{HOW} to keep some")
    there = f"kept steps: {', '.join(map(str, steps))}"
    if step == 0 and learned is not None and learned.about.get(RUN) == run.name:
        return learned, run, f"run {run.name}, step {learned.about.get('steps', '?')}, its end; {there}"
    number = step or max(steps)
    if number not in steps:
        raise ValueError(f"step: {number} of the run {run.name!r} is not kept; there {_listed(list(map(str, steps)))}")
    return read_step(model, clip, run, number, steps[number]), run, f"run {run.name}, step {number}; {there}"


def sheet_image(run: Run | None) -> torch.Tensor:
    """A run's sheet of samples as IMAGE, or a card that says that there is none."""
    page = None if run is None else read_page(run.sheet)
    return text_image("no sheet of samples is kept") if page is None else image_of(page)


def shown_sheet(run: Run | None) -> list[dict[str, str]]:
    """The sheet as the host's front end shows a saved picture on a node."""
    if run is None or not run.sheet.is_file():
        return []
    return [{"filename": SHEET, "subfolder": f"{FOLDER}/{run.name}", "type": "output"}]


def runs() -> list[Run]:
    """All runs, the newest first."""
    records = (Path(folder_paths.get_output_directory()) / FOLDER).glob(f"*/{RECORD}")
    return [Run(path.parent) for path in sorted(records, key=lambda path: -path.stat().st_mtime)]


def state(run_name: str | None) -> Changes:
    """State of the record of a run, or of all where the name is linked and not known yet. An empty name is no file's."""
    if run_name is None:
        return changes_of_all({run.name: [run.record] for run in runs()})
    try:
        return changes({run_name: [run_called(run_name).record]})
    except ValueError:  # said when the node runs
        return changes({run_name: []})


def _without_run(step: int, learned: Learned | None) -> Learned:
    if learned is None:
        raise ValueError("run_name: it is empty and nothing is connected to learned; write the name of a run, or connect the "
                         f"training node. There {_names_of_runs()}")
    if step:
        raise ValueError(f"step: {step} cannot be chosen, since the training kept none on its way. {HOW}, or step to 0")
    tell(f"the training in front kept no step on its way. {HOW} to choose one; what it learned goes on as it is")
    return learned


def read_step(model, clip, run: Run, step: int, files: Files) -> Learned:
    """Reads what a run had learned at a step. Raises ValueError where these are gone or of another kind of model."""
    lora: dict[str, torch.Tensor] = {}
    about: dict[str, str] = {}
    if files.file is not None:
        path = _there("loras", files.file)
        with refused_if_damaged(path, AGAIN):
            if read_metadata(path).get("format", PLAIN) != PLAIN:
                raise ValueError(f"run_name: {run.name!r} has learned no LoRA or embedding; load {path.name} with the loader of "
                                 "its method, as ViCo Load (DreamMatcher) or SeFi Load (DreamMatcher)")
            lora, about = read_tensors(path)
        taken = taken_by(model, clip, lora)
        if taken.unlike or not taken.tensors:
            raise ValueError(f"model: the run {run.name!r} has taught another kind of model: {taken.left_out()}")
        if left := taken.left_out():
            tell(f"{path.name}: {left}; they are left out")
    embeddings = {}
    for word, file in files.words.items():
        path = _there("embeddings", file)
        with refused_if_damaged(path, AGAIN):
            tensors, more = read_tensors(path)
        embeddings[word], about = rows_of(f"its word {word!r}", tensors), {**more, **about}
    return Learned(lora, embeddings, without_own({key: text for key, text in about.items() if key not in ("format", WORDS)}))


def _there(kind: str, path: Path) -> Path:
    """The file that was written, or that of its name where models folders have been moved since."""
    found = path if path.is_file() else folder_paths.get_full_path(kind, path.name)
    if found is None:
        raise ValueError(f"step: its file {path} is gone; {AGAIN}")
    return Path(found)


def _names_of_runs() -> str:
    return _listed([run.name for run in runs()])


def _listed(names: list[str]) -> str:
    if not names:
        return "is none"
    listed = f"{', '.join(names[:20])}{' and more' if len(names) > 20 else ''}"
    return f"is {listed}" if len(names) == 1 else f"are {listed}"
