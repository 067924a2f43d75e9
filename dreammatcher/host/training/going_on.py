"""Finds what a run of a name has learned before, says where it differs, and has a training go on from it where that is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...training import state as states
from ...training.beginning import begin, begin_words
from ...training.details import PLAIN
from ...training.recipe import Recipe
from ...training.settings import ASK, GO_ON, TrainingOptions
from ...training.state import Checkpoint
from ...training.trainables import TokenRows
from ..graph.notes import tell
from . import safety
from .begin_from import beginning_of
from .choose import read_step
from .job_name import Name
from .keep import Files, numbered_names
from .kept import Run, run_called, run_for, run_name
from .model import HostLearner

#: choices that say what learns and on what: nothing that was learned with others could be gone on from
FIXED = ("method", "kind", "model", "rank", "alpha", "text_encoder", "vectors", "begin_from", "attention", "feed_forward",
         "convolutions", "projections", "blocks", "algorithm")
#: choices that came after runs were first kept, and what was chosen before
ADDED = {"algorithm": PLAIN}
#: choices that are known by a digest alone, in words
DIGESTS = {"model": "another model, text encoder or LoRA on them", "latents": "another VAE",
           "begin_from": "other weights to begin from"}
#: with another one of these, the optimiser begins anew
FRESH = ("optimiser", "average")
WIDGET = "when_it_differs in Training Options (DreamMatcher)"


@dataclass(frozen=True)
class Earlier:
    """A training of the same name, as far as it is on disk: a state, or the files of the last step that it kept."""

    job: str
    said: Mapping[str, Any]
    step: int
    path: Path  # of the state, or of the run's record
    files: Files | None = None
    run: Run | None = None  # where it kept its steps or its state
    losses: tuple[float, ...] = ()  # of its steps; a state holds its own


@dataclass(frozen=True)
class Start:
    """The name of a training's run, its folder, and what it goes on from beside its own state."""

    name: str
    run: Run | None = None
    source: Earlier | None = None
    changed: tuple[str, ...] = field(default=())  # inputs that differ

    @property
    def stopped(self) -> Path | None:
        """The state of a stopped run that this one goes on from."""
        return self.source.path if self.source and not self.source.files and self.source.run is None else None

    def about(self, said: Mapping[str, Any]) -> str:
        """The run and its choices, for the head of a state."""
        return json.dumps({"run": self.name, "said": dict(said)})


def start_of(recipe: Recipe[HostLearner], job: Name, options: TrainingOptions, words: tuple[str, ...]) -> Start:
    """Decides what a training goes on from, by the name of its run or the words of its subjects.

    Its own state, found by its job, comes first. Where another training of this name is on disk, more steps alone go on from it
    unless ``differs`` says to begin anew; for anything else ``differs`` is asked. Raises ValueError, naming what differs, where
    it says to ask, and where it says to go on from what cannot be gone on from.
    """
    name = run_name(options.keeping.run, "+".join(words))
    plain = Start(name, run_for(name, job.job))
    if safety.own(job.job, job.kin):
        return plain
    found, differs = earlier_of(name), options.running.differs
    same = next((one for one in found if one.job == job.job), None)
    if same is not None:
        return Start(name, same.run, same) if same.files is None and differs in (ASK, GO_ON) else plain
    if not found:
        return plain
    longer = [one for one in found if list(differences(one.said, job.said)) == ["steps"] and one.step < job.said["steps"]]
    source = (longer or found)[0]
    changed = differences(source.said, job.said)
    where = f"the run {name!r} stands at step {source.step}, with other choices: {'; '.join(changed.values())}"
    if differs == ASK and not longer:
        raise ValueError(f"run_name: {where}. Set {WIDGET} to {GO_ON!r} or 'begin anew', or give another run_name")
    if differs not in (ASK, GO_ON):
        tell(f"{where}. This one begins anew; set {WIDGET} to {GO_ON!r} to go on from it")
        return plain
    if obstacle := _obstacle(recipe, source, job, changed):
        raise ValueError(f"run_name: the run {name!r}, at step {source.step}, cannot go on so: {obstacle}. Set this as it was, "
                         f"or {WIDGET} to 'begin anew'")
    return Start(name, source.run or run_for(name, source.job), source, tuple(changed))


def begun(recipe: Recipe[HostLearner], start: Start, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The state that a training goes on from, or None: its own, or else that of its ``start``, which is told."""
    own, source = safety.begin(checkpoint), start.source
    if own is not None or source is None:
        return own
    anew = source.files is not None or any(name in start.changed for name in FRESH)
    tell(f"goes on from step {source.step} of the run {start.name!r}, with a fresh optimiser" if anew else
         f"goes on from step {source.step} of the run {start.name!r}")
    if source.files is not None:
        _begin(recipe, source)
        losses = [*source.losses[:source.step], *[source.losses[-1] if source.losses else 0.0] * source.step][:source.step]
        return {"step": source.step, "losses": losses, "scale": recipe.scale, "learned": recipe.learned.state_dict()}
    state = states.read(source.path, source.job)
    assert state is not None
    dropped = {"optimiser", "schedule", "average"} if anew else set()
    dropped |= {"generator"} if "seed" in start.changed else set()
    return {key: value for key, value in state.items() if key not in dropped}


def earlier_of(name: str) -> list[Earlier]:
    """Trainings of the run ``name`` that are on disk, the newest first; of each the furthest step."""
    found: dict[str, Earlier] = {}
    for one in (*_stopped(name), *_ended(name)):
        if one.job not in found or one.step > found[one.job].step:
            found[one.job] = one
    return sorted(found.values(), key=lambda one: -one.path.stat().st_mtime)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Inputs in which two trainings differ, each with a text as "rate 0.0001 → 5e-05"; of two methods those that both have."""
    names = {**before, **after} if before.get("method") == after.get("method") else [name for name in before if name in after]
    both = {name: (before.get(name, ADDED.get(name)), after.get(name, ADDED.get(name))) for name in names}
    changed = {name: (old, new) for name, (old, new) in both.items() if old != new}
    sets = {name.partition("'")[0] for name in changed if "'s " in name}
    texts = {}
    for name, (old, new) in changed.items():
        owner, _, part = name.partition("'s ")
        if part == "words":
            texts[name] = " → ".join([f"{owner}: words {_shown(old or 'of one subject')}", _shown(new or 'of one subject')])
        elif part == "contents":
            if not any(f"{owner}'s {other}" in changed for other in ("words", "pictures", "resolution")):
                texts[name] = f"{owner}: other pictures or captions"
        elif name in DIGESTS:
            if name != "latents" or not (sets or "model" in changed):  # latents follow from these
                texts[name] = DIGESTS[name]
        else:
            texts[name] = f"{name} {_shown(old)} → {_shown(new)}"
    return texts


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return "none" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def _obstacle(recipe: Recipe[HostLearner], source: Earlier, job: Name, changed: Mapping[str, str]) -> str:
    """The reason why a training cannot go on from ``source``; empty where it can."""
    fixed = [changed[name] for name in FIXED if name in changed]
    if fixed:
        return "; ".join(fixed)
    if source.step >= job.said["steps"]:
        return f"steps {job.said['steps']} are done already"
    own = {name: tuple(value.shape) for name, value in recipe.learned.state_dict().items()}
    if source.files is None and states.learned_shapes(source.path) != own:
        return f"other weights learn; {'; '.join(changed.values())}"
    if source.files is not None and not all(isinstance(rows, TokenRows) for rows in recipe.rows.values()):
        return "of this method a state alone is gone on from, and the run kept none (keep_state)"
    return ""


def _begin(recipe: Recipe[HostLearner], source: Earlier) -> None:
    denoiser = recipe.model.denoiser
    assert source.run is not None and source.files is not None
    learned = read_step(denoiser.model, denoiser.clip, source.run, source.step, source.files)
    beginning = beginning_of(denoiser.model, denoiser.clip, learned)
    assert beginning is not None
    for trainable, changes in ((recipe.unet, beginning.unet), (recipe.text, beginning.text)):
        if trainable is not None:
            begin(trainable, changes)
    rows = {word: one for word, one in recipe.rows.items() if isinstance(one, TokenRows)}
    assert len(rows) == len(recipe.rows)
    begin_words(rows, beginning.words)


def _stopped(name: str) -> list[Earlier]:
    return [one for path in safety.all_states() if (one := _state(path, None, name)) and one.said]


def _state(path: Path, run: Run | None, name: str) -> Earlier | None:
    """The state of a run of this ``name``, or None where it is another's or cannot be read."""
    try:
        kept = states.about(path)
    except (ValueError, OSError):
        return None
    if run is None and kept.about.get("run", "") != name:
        return None
    return Earlier(kept.job, kept.about.get("said", {}), kept.step, path, run=run)


def _ended(name: str) -> list[Earlier]:
    found: list[Earlier] = []
    for one in numbered_names(name):
        run = run_called(one)
        if not run.folder.is_dir():
            return found
        record, kept = run.read(), run.steps()
        if run.state.is_file() and (state := _state(run.state, run, name)) and state.said:
            found.append(state)
        if kept and record.get("said"):
            step, files = list(kept.items())[-1]
            found.append(Earlier(record["job"], record["said"], step, run.record, files, run, tuple(record.get("losses", ()))))
    return found
