"""The reference of a subject: everything that is learned from one picture, as one value that can be saved."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..backbones.process import EPS, PROCESSES
from ..files import metadata_if_any, read_tensors, refused_if_damaged, write_tensors
from ..subject import Conditioning, Subject
from ..uncopied import Uncopied
from .features import FeatureStore
from .inversion import Trajectory

FORMAT = "dreammatcher-reference-1"
#: in a file, between a prompt's name and the name of what some families are told beside it
OTHERS = "."


@dataclass(frozen=True, eq=False)
class Reference(Uncopied):
    """One inverted picture."""

    trajectory: Trajectory
    latent: torch.Tensor  # [1, C, H, W], in the model's scale
    positive: Conditioning
    negative: Conditioning
    fingerprint: str  # family of the model it came from
    subject: Subject | None = None
    psnr: float = 0.0  # of the reconstruction, dB
    store: FeatureStore = field(default_factory=FeatureStore)  # features kept between runs; not saved

    def with_store(self, store: FeatureStore) -> Reference:
        return replace(self, store=store)


@dataclass(frozen=True, eq=False)
class Member:
    """One reference of a set: its picture's subject MASK [1, 1, H, W], if painted, and how strongly it is taken, 0..1."""

    reference: Reference
    mask: torch.Tensor | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight: {self.weight} is outside 0..1")
        if self.mask is not None and not bool((self.mask > 0.5).any()):
            raise ValueError("mask: it is empty, so there would be nothing to match; paint the subject white")


@dataclass(frozen=True, eq=False)
class ReferenceSet(Uncopied):
    """Several pictures of one subject, matched jointly."""

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        families = {member.reference.fingerprint for member in self.members}
        if len(families) > 1:
            raise ValueError(f"references: they were made with different model families ({'; '.join(sorted(families))}); "
                             "invert all of them with one model")


def views_of(given: Reference | ReferenceSet) -> tuple[Member, ...]:
    return given.members if isinstance(given, ReferenceSet) else (Member(given),)


def combined(first: Reference | ReferenceSet | None, second: Reference | ReferenceSet | None, *, first_weight: float = 1.0,
             second_weight: float = 1.0, first_mask: torch.Tensor | None = None,
             second_mask: torch.Tensor | None = None) -> ReferenceSet:
    """One set of two references or sets, of which one may be missing.

    A weight multiplies a set's own weights; a mask replaces none that is there.

    Raises ValueError for weights outside 0..1, an empty mask, a mask for a set and references of different families.
    """
    members = []
    for name, given, weight, mask in (("reference_1", first, first_weight, first_mask),
                                      ("reference_2", second, second_weight, second_mask)):
        if given is None:
            continue
        if mask is not None and isinstance(given, ReferenceSet):
            raise ValueError(f"{name}: a mask cannot be given to references that are combined already; give it where "
                             "they are combined")
        if not 0 <= weight <= 1:
            raise ValueError(f"{name}: weight {weight} is outside 0..1")
        if mask is not None and not bool((mask > 0.5).any()):
            raise ValueError(f"{name.replace('reference', 'mask')}: it is empty, so there would be nothing to match; paint the "
                             "subject white")
        members += [Member(member.reference, member.mask if mask is None else mask, member.weight * weight)
                    for member in views_of(given)]
    return ReferenceSet(tuple(members))


def save(reference: Reference, path: Path) -> None:
    """Writes a reference as safetensors; the file appears whole or not at all.

    Raises ValueError for a combination of several.
    """
    if isinstance(reference, ReferenceSet):
        raise ValueError(f"reference: this is a combination of {len(reference.members)}; save each of them on its own")
    tensors = {
        "clean": reference.trajectory.clean,
        "noise": reference.trajectory.noise,
        "latent": reference.latent,
        "positive": reference.positive.cross_attention,
        "negative": reference.negative.cross_attention,
    }
    for name, conditioning in (("positive", reference.positive), ("negative", reference.negative)):
        if conditioning.pooled is not None:
            tensors[f"{name}_pooled"] = conditioning.pooled
        tensors.update({f"{name}{OTHERS}{key}": value for key, value in conditioning.others.items()})
    metadata = {
        "format": FORMAT,
        "sigmas": json.dumps(list(reference.trajectory.sigmas)),
        "process": reference.trajectory.process.name,
        "fingerprint": reference.fingerprint,
        "psnr": repr(reference.psnr),
        "subject": json.dumps(_said(reference.subject)),
    }
    write_tensors(path, {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, metadata)


def _said(subject: Subject | None) -> dict | None:
    """A subject in a file. What the text encoder made of it stands there as part of the positive prompt."""
    if subject is None:
        return None
    return {name: getattr(subject, name) for name in ("words", "prompt", "columns", "tokens")}


def is_reference(path: Path) -> bool:
    """True if :func:`save` wrote a file; only its head is read."""
    return metadata_if_any(path).get("format") == FORMAT


def load(path: Path) -> Reference:
    """Reads a file that :func:`save` wrote.

    Raises FileNotFoundError when there is none, ValueError saying what is wrong when it is truncated, is no safetensors
    file, is no reference or holds parts that do not belong together.
    """
    if not path.is_file():
        raise FileNotFoundError(f"reference file {path} does not exist")

    def expect(metadata: dict[str, str]) -> None:
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is a safetensors file but no DreamMatcher reference: its format is "
                             f"{metadata.get('format')!r}, not {FORMAT!r}")

    with refused_if_damaged(path, "save the reference again"):
        tensors, metadata = read_tensors(path, expect)
    try:
        return _assemble(tensors, metadata)
    except (KeyError, TypeError, json.JSONDecodeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged DreamMatcher reference: {error!r}; save it again") from error


def _assemble(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Reference:
    subject = json.loads(metadata["subject"])
    process = PROCESSES[metadata.get("process", EPS.name)]  # files of earlier versions are of UNets, whose x is EPS's
    trajectory = Trajectory(tuple(map(float, json.loads(metadata["sigmas"]))), tensors["clean"], tensors["noise"], process)
    latent = tensors["latent"]
    if latent.shape[1:] != trajectory.clean.shape[1:] or latent.ndim != 4:
        raise ValueError(f"latent {tuple(latent.shape)} and trajectory {tuple(trajectory.clean.shape)} differ")
    conditionings: dict[str, Any] = {}
    for name in ("positive", "negative"):
        if tensors[name].ndim != 3:
            raise ValueError(f"{name} conditioning is {tuple(tensors[name].shape)}, not [1, T, C]")
        before = f"{name}{OTHERS}"
        others = {key.removeprefix(before): value for key, value in tensors.items() if key.startswith(before)}
        conditionings[name] = Conditioning(tensors[name], tensors.get(f"{name}_pooled"), others)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return Reference(
        trajectory=trajectory, latent=latent, **conditionings, fingerprint=metadata["fingerprint"],
        subject=Subject(subject["words"], subject["prompt"], tuple(subject["columns"]), subject["tokens"])
        if subject else None,
        psnr=float(metadata["psnr"]),
    )
