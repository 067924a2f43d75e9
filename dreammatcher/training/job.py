"""A training as a folder: what to learn, from which pictures, on which checkpoint. Written by a graph, run by any machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..files import atomic_write, read_tensors, write_tensors
from .captions import Naming
from .data import Example, Preparation
from .details import details_of
from .export import Learned
from .sets import TrainingSet
from .settings import Keeping, OptimiserSettings, Running, TrainingOptions, TrainingSettings

FORMAT = "dreammatcher-job-1"
FILE, PICTURES, BEGIN = "job.json", "pictures.safetensors", "begin.safetensors"
#: in place of a checkpoint: the small model that ships with the pack
TOYBOX = "Toybox"
DREAMBOOTH_LORA, DREAMBOOTH_FULL = "DreamBooth LoRA", "DreamBooth full"
TEXTUAL_INVERSION, CUSTOM_DIFFUSION = "Textual Inversion", "Custom Diffusion"
METHODS = (DREAMBOOTH_LORA, DREAMBOOTH_FULL, TEXTUAL_INVERSION, CUSTOM_DIFFUSION)


@dataclass(frozen=True)
class Choices:
    """Options of all methods. Each method uses those that concern it."""

    rate: float = 1e-4
    prior_weight: float = 1.0
    rank: int = 4
    text_encoder: bool = False
    masked: bool = False
    initial_word: str = ""
    vectors: int = 1
    sizes: bool = True
    word_rate: float = 0.0


@dataclass(frozen=True, eq=False)
class Job:
    """One training to be run elsewhere."""

    name: str  # of the file that is learned
    method: str
    checkpoint: str  # path of the file, or its name in the host's folder of checkpoints
    subject_set: TrainingSet
    prior: TrainingSet | None
    choices: Choices
    settings: TrainingSettings  # the batch is that of each process
    options: TrainingOptions
    host: Mapping[str, str]  # who wrote it, to be told: "code" is its folder, "base" that of its models, input and output
    begin: Learned | None = None  # what was learned before, from which it begins

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: {self.method!r} is unknown; choose one of {', '.join(METHODS)}")

    def write(self, folder: Path) -> Path:
        """Writes the job into a folder, its description last; returns the description's path."""
        tensors = _tensors("own", self.subject_set) | ({} if self.prior is None else _tensors("prior", self.prior))
        write_tensors(folder / PICTURES, tensors)
        if self.begin is not None:
            write_tensors(folder / BEGIN, {f"{part}.{name}": value.cpu().contiguous().clone() for part, values in (
                ("lora", self.begin.lora), ("word", self.begin.embeddings)) for name, value in values.items()})
        with atomic_write(folder / FILE) as partial:
            partial.write_text(json.dumps(self.described(), indent=1), encoding="utf-8")
        return folder / FILE

    def described(self) -> dict[str, Any]:
        apart, keeping = ("running", "optimiser", "keeping", "details"), self.options.keeping
        options, settings = (
            {field.name: getattr(part, field.name) for field in fields(part) if field.name not in apart}
            for part in (self.options, self.settings))
        return {"format": FORMAT, "name": self.name, "method": self.method, "checkpoint": self.checkpoint,
                "choices": asdict(self.choices), "settings": settings, "optimiser": asdict(self.options.optimiser),
                "options": options, "checkpointing": self.options.running.checkpointing,
                "keep_minutes": self.options.running.keep_minutes, "when_it_differs": self.options.running.differs,
                "keeping": {**asdict(keeping), "prompts": list(keeping.prompts)}, "own": _set(self.subject_set),
                "prior": None if self.prior is None else _set(self.prior), "details": self.options.details.described(),
                "begin": None if self.begin is None else {"about": dict(self.begin.about), "digest": self.begin.digest()},
                "host": dict(self.host)}


def read(path: Path) -> Job:
    """A job that :meth:`Job.write` wrote. Raises ValueError, naming the file and what is wrong with it."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        tensors, _ = read_tensors(path.with_name(PICTURES))
        begins = isinstance(said, dict) and bool(said.get("begin"))
        learned, _ = read_tensors(path.with_name(BEGIN)) if begins else ({}, {})
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path}: it cannot be read as a job ({error}); let Training Job (DreamMatcher) write it "
                         "again") from error
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ValueError(f"{path}: it is no job of the format {FORMAT!r}; let Training Job (DreamMatcher) write it again")
    try:
        optimiser = OptimiserSettings(**{**said["optimiser"], "betas": tuple(said["optimiser"]["betas"])})
        prior = said["prior"] and _read_set(said["prior"], "prior", tensors)
        running = Running(keep_minutes=said.get("keep_minutes", Running.keep_minutes), checkpointing=said["checkpointing"],
                          differs=said.get("when_it_differs", Running.differs))
        kept = said.get("keeping", {})
        keeping = Keeping(kept.get("every", 0), kept.get("run", ""), tuple(kept.get("prompts", ())), kept.get("state", False),
                          kept.get("records", Keeping.records))
        options = TrainingOptions(optimiser, **said["options"], running=running, keeping=keeping,
                                  details=details_of(said.get("details", {})))
        return Job(said["name"], said["method"], said["checkpoint"], _read_set(said["own"], "own", tensors), prior,
                   Choices(**said["choices"]), TrainingSettings(**said["settings"], optimiser=optimiser), options, said["host"],
                   _read_begin(said["begin"]["about"], learned) if begins else None)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: it holds something else than a job of this version ({error}); let Training Job (DreamMatcher) "
                         "write it again") from error


def _read_begin(about: dict[str, str], tensors: Mapping[str, torch.Tensor]) -> Learned:
    parts: dict[str, dict[str, torch.Tensor]] = {"lora": {}, "word": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    return Learned(parts["lora"], parts["word"], about)


def _set(pictures: TrainingSet) -> dict[str, Any]:
    said = {"naming": asdict(pictures.naming), "preparation": asdict(pictures.preparation),
            "captions": [example.captions for example in pictures.examples]}
    return {**said, "parts": [_set(one) for one in pictures.parts]} if pictures.parts else said


def _tensors(part: str, pictures: TrainingSet) -> dict[str, torch.Tensor]:
    tensors = {}
    for number, example in enumerate(pictures.examples):
        tensors[f"{part}.{number}.picture"] = example.picture.cpu().contiguous().clone()
        if example.mask is not None:
            tensors[f"{part}.{number}.mask"] = example.mask.cpu().contiguous().clone()
    return tensors


def _read_set(said: dict[str, Any], part: str, tensors: Mapping[str, torch.Tensor]) -> TrainingSet:
    examples = [Example(tensors[f"{part}.{number}.picture"], tuple(captions), tensors.get(f"{part}.{number}.mask"))
                for number, captions in enumerate(said["captions"])]
    return _of_examples(said, examples)


def _of_examples(said: dict[str, Any], examples: list[Example]) -> TrainingSet:
    """A set by its description, of its ``examples``; its parts have theirs in order."""
    naming = Naming(**{**said["naming"], "templates": tuple(said["naming"]["templates"])})
    ends = list(accumulate((len(part["captions"]) for part in said.get("parts", ())), initial=0))
    parts = tuple(_of_examples(part, examples[start:end])
                  for part, start, end in zip(said.get("parts", ()), ends, ends[1:], strict=False))
    return TrainingSet(tuple(examples), naming, Preparation(**said["preparation"]), parts=parts)
