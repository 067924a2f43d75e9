"""Evaluation protocols: the subjects, prompts and seeds of their pictures, read from the files that the authors published.

DreamBooth (Ruiz et al. 2023, Sec. 4.1): 30 subjects, 25 prompts, 4 pictures each. ViCo (Hao et al. 2023) as DreamMatcher's
authors measure it: 16 subjects, 31 prompts, 8 pictures each. A protocol of one's own is a JSON file.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..texts import read_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
DREAMBOOTH, VICO = "dreambooth", "vico"
#: of DreamBooth's 30 subjects, those with the prompts for live ones
LIVE = frozenset({"cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8"})
#: of ViCo's 16 subjects, likewise
VICO_LIVE = frozenset({"black_cat", "brown_cat", "brown_dog", "brown_dog2", "fat_dog"})


@dataclass(frozen=True)
class Subject:
    """One subject with its photos."""

    name: str
    class_word: str  # empty where the protocol has none
    pictures: tuple[Path, ...]
    prompts: tuple[str, ...]  # "{}" stands for the subject
    first_seed: int = 0
    class_samples: int = 0  # of a class alone, whose prompts do not name the subject; 0 for a subject


@dataclass(frozen=True)
class Case:
    """One picture to be made."""

    subject: Subject
    prompt: int  # its number among the subject's
    sample: int

    @property
    def key(self) -> str:
        """Name of the case's files."""
        return f"{self.subject.name}-{self.prompt:02}-{self.sample}"

    @property
    def seed(self) -> int:
        """Seed of the case: the same for every arm, and in published protocols for every subject."""
        return self.subject.first_seed + 1000 * self.prompt + self.sample

    def text(self, identifier: str) -> str:
        """The prompt, in which the identifier and the class name the subject, or the class alone."""
        return self.plain_text() if self.subject.class_samples else self._with(f"{identifier} {self.subject.class_word}".strip())

    def plain_text(self) -> str:
        """The prompt that text alignment is measured with: the identifier is taken out."""
        return self._with(self.subject.class_word)

    def _with(self, named: str) -> str:
        return " ".join(self.subject.prompts[self.prompt].replace("{}", named).split())


@dataclass(frozen=True)
class Protocol:
    """Subjects, and how many pictures of each prompt. Raises ValueError for a subject without pictures or prompts."""

    name: str
    subjects: tuple[Subject, ...]
    samples: int

    def __post_init__(self) -> None:
        if not self.subjects or self.samples < 1:
            raise ValueError(f"protocol {self.name}: it has no subjects or no samples")
        for subject in self.subjects:
            for what in ("pictures", "prompts"):
                if not getattr(subject, what):
                    raise ValueError(f"protocol {self.name}: subject {subject.name!r} has no {what}")

    def cases(self) -> Iterator[Case]:
        for subject in self.subjects:
            for prompt in range(len(subject.prompts)):
                for sample in range(subject.class_samples or self.samples):
                    yield Case(subject, prompt, sample)


def with_prior(protocol: Protocol, samples: int) -> Protocol:
    """The protocol with ``samples`` further pictures of each subject's class alone (DreamBooth, Sec. 4.3).

    They show what is drawn when nobody asks for the subject. Raises ValueError for a protocol without class words.
    """
    if not all(subject.class_word for subject in protocol.subjects):
        raise ValueError(f"prior: the protocol {protocol.name} names no classes, so there is nothing to draw without the subject")
    classes = (replace(subject, name=f"{subject.name}-class", prompts=("a photo of a {}",), class_samples=samples)
               for subject in protocol.subjects)
    return replace(protocol, subjects=(*protocol.subjects, *classes))


def cases_of(protocol: Protocol, prior: int = 0, limit: int = 0) -> list[Case]:
    """Cases of a protocol and ``prior`` pictures of each subject's class alone; only the first ``limit``, or all for 0."""
    return list((with_prior(protocol, prior) if prior else protocol).cases())[:limit or None]


def shard(cases: list[Case], number: int, count: int) -> list[Case]:
    """Every ``count``-th case from ``number`` on, 0 <= number < count: together the shards are all cases, each once."""
    if not 0 <= number < count:
        raise ValueError(f"shard: {number} is outside 0..{count - 1}")
    return cases[number::count]


def pictures_in(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")))


def _text(path: Path, where: str) -> str:
    if not path.is_file():
        raise ValueError(f"data: {path} cannot be read, it is not there; it is part of {where}")
    return read_text("data", path)


def dreambooth(data: Path) -> Protocol:
    """DreamBooth's protocol, from the folder ``dataset`` of github.com/google/dreambooth.

    Raises ValueError, naming the file, for another than published.
    """
    root = data / "dataset" if (data / "dataset").is_dir() else data
    text = _text(root / "prompts_and_classes.txt", "github.com/google/dreambooth")
    classes = {row[0].strip(): row[1].strip() for row in csv.reader(_section(text, "Classes").splitlines())
               if len(row) == 2 and row[0].strip() != "subject_name"}
    prompts = {live: tuple(re.sub(r"\{0\}\s*\{1\}", "{}", line)
                           for line in re.findall(r"'([^'\n]*\{0\}[^'\n]*)'\.format", _section(text, title)))
               for live, title in ((False, "Object Prompts"), (True, "Live Subject Prompts"))}
    if not classes or not all(prompts.values()):
        raise ValueError(f"data: {root / 'prompts_and_classes.txt'} has not the sections Classes, Object Prompts and Live "
                         "Subject Prompts that were published")
    subjects = tuple(Subject(name, word, pictures_in(root / name), prompts[name in LIVE]) for name, word in classes.items())
    return Protocol(DREAMBOOTH, subjects, 4)


def _section(text: str, title: str) -> str:
    """Lines between a title and the next one."""
    titles = r"(?:Classes|Object Prompts|Live Subject Prompts|Prompts)"
    section = re.search(rf"^\W*{re.escape(title)}\W*$(.*?)(?=^\W*{titles}\W*$|\Z)", text, re.MULTILINE | re.DOTALL)
    return section[1] if section else ""


def vico(data: Path) -> Protocol:
    """ViCo's protocol, from the folder ``inputs`` of DreamMatcher's repository.

    It holds a folder for each subject, and two files of prompts.
    """
    root = data / "inputs" if (data / "inputs").is_dir() else data
    prompts = {}
    for live, name in ((False, "prompts_nonlive_objects.txt"), (True, "prompts_live_objects.txt")):
        lines = [line.strip() for line in _text(root / name, "github.com/cvlab-kaist/DreamMatcher, inputs").splitlines()]
        prompts[live] = tuple(line for line in lines if "{}" in line)
        if not prompts[live]:
            raise ValueError(f"data: {root / name} has no line with {{}} in the subject's place")
    subjects = tuple(Subject(folder.name, "", pictures_in(folder), prompts[folder.name in VICO_LIVE])
                     for folder in sorted(root.iterdir()) if pictures_in(folder))
    return Protocol(VICO, subjects, 8)


def protocol_file(path: Path, data: Path) -> Protocol:
    """A user's protocol from a JSON file: {"samples": 4, "prompts": ["a {} on the beach"], "subjects": {"my_dog": "dog"}}.

    Pictures lie in folders of the subjects' names, in ``data`` or beside the file.
    """
    try:
        said = json.loads(_text(path, "the command: --protocol is a name of its --help, or a JSON file"))
        prompts = tuple(str(prompt) for prompt in said["prompts"])
        wrong = [prompt for prompt in prompts if "{}" not in prompt]
        if wrong:
            raise ValueError(f"protocol: the prompt {wrong[0]!r} has no {{}} in the subject's place")
        subjects = tuple(Subject(name, word, pictures_in(data / name) or pictures_in(path.parent / name), prompts)
                         for name, word in said["subjects"].items())
        return Protocol(path.stem, subjects, int(said.get("samples", 1)))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"protocol: {path} is not as described ({error!r}); it holds samples, prompts and subjects") from error
