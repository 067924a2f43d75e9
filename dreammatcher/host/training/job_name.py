"""Names a training by everything that its result depends on, and says in words where two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from ...training.details import CaptionChanges, Details, Noise, TextEncoder
from ...training.sets import TrainingSet

#: what another attempt at a run that gave up may change: its rates, and its precision
CHANGEABLE = frozenset(("rate", "word_rate", "block_rate", "bfloat16"))
#: choices whose inputs are called otherwise; of some classes they have names that others have too
INPUTS = {"text": "text_encoder", "clip": "clip_norm", "zero": "zero_start", "one_picture": "allow_one_picture"}
INPUTS_OF = {TextEncoder: {"rate": "text_rate", "until": "text_until"}, Noise: {"offset": "noise_offset", "times": "timesteps"},
             CaptionChanges: {"dropout": "caption_dropout", "shuffle": "caption_shuffle", "keep": "keep_tags"}}


class Rate(float):
    """A learning rate among a training's choices."""


@dataclass(frozen=True)
class Name:
    """Name of a training, by everything that its result depends on."""

    job: str  # the same pictures, settings and weights go on where they stopped
    kin: str  # the same at any rate and precision
    said: Mapping[str, Any] = field(default_factory=dict)  # input -> its value, or a digest of it


def job_of(identity: str, *choices: object) -> Name:
    """The name of a training with these choices on weights and latents of this ``identity``."""
    said = [_said(choice) for choice in (*choices, identity)]
    return Name(digest_of(said), digest_of(_at_any_rate(said)))


def _said(choice: object) -> Any:
    if isinstance(choice, TrainingSet):
        return choice.fingerprint()
    if not is_dataclass(choice) or isinstance(choice, type):
        return choice
    later = {one.name for one in fields(choice) if one.metadata.get("later") and getattr(choice, one.name) == one.default}
    return {name: value for name, value in asdict(choice).items() if name not in later}


def _flat(name: str, choice: object) -> dict[str, Any]:
    """A choice by the names of the inputs that it comes from."""
    if isinstance(choice, TrainingSet):
        return {f"{name}'s pictures": len(set(choice.examples)), f"{name}'s resolution": choice.preparation.resolution,
                f"{name}'s contents": choice.fingerprint(), **({f"{name}'s words": list(choice.words)} if choice.parts else {})}
    if is_dataclass(choice) and not isinstance(choice, type):
        inputs = {**INPUTS, **INPUTS_OF.get(type(choice), {}), "name": name}
        parts = [_flat(inputs.get(one.name, one.name), getattr(choice, one.name)) for one in fields(choice)]
        return {key: value for part in parts for key, value in part.items()}
    return {name: list(choice) if isinstance(choice, tuple) else choice}


def digest_of(said: object) -> str:
    """A digest of values as JSON."""
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()


def _at_any_rate(said: Any) -> Any:
    if isinstance(said, dict):
        return {name: _at_any_rate(value) for name, value in said.items() if name not in CHANGEABLE}
    return [_at_any_rate(value) for value in said if not isinstance(value, Rate)] if isinstance(said, list) else said


def named(identity: str, base: str, method: str, **choices: object) -> Name:
    """The same as :func:`job_of`, with each choice under its input's name; ``base`` is the model's part of the ``identity``.

    Finer choices with their defaults do not count: trainings were named without them before there were any.
    """
    choices = {name: choice.on(False) if isinstance(choice, Details) else choice for name, choice in choices.items()}
    said: dict[str, Any] = {"method": method, "model": base, "latents": digest_of(identity)}
    for name, choice in choices.items():
        said |= {key: value for key, value in _flat(name, choice).items() if key not in said}  # ViCo's masked before the loss's
    counted = [choice for choice in choices.values() if choice != Details().on(False)]
    return replace(job_of(identity, method, *counted), said=said)
