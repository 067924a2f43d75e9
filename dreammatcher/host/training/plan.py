"""Plans a training so that it fits the device, before its first step and before a class picture is drawn."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import comfy.model_management
import torch

from ...sizes import spatial_size
from ...training.curve import duration
from ...training.recipe import Recipe, SubjectRecipe
from ...training.settings import Running, TrainingSettings
from ..graph.notes import tell
from . import estimate
from .estimate import GB, Need
from .model import HostDenoiser, HostLearner

log = logging.getLogger(__name__)

SMALLER = ("give a smaller batch or resolution, a model with smaller pictures (SD1.x), or a LoRA in place of a full training; "
           "close other programs on the card, or train on one with more memory")
#: bytes of a card that its libraries take while they work
WORKSPACE = 1 << 29


@dataclass(frozen=True)
class Plan:
    """A way to run a training. Its precision and parts alone change what is learned, up to rounding."""

    checkpointing: bool
    text_away: bool = False  # the text encoder leaves the device once every caption is read
    bfloat16: bool = False
    parts: int = 1  # of a batch, one after the other

    @property
    def computing(self) -> tuple[bool, bool, int]:
        """The parts that decide what training takes beside the model."""
        return self.checkpointing, self.bfloat16, self.parts

    def settings(self, asked: TrainingSettings) -> TrainingSettings:
        return replace(asked, bfloat16=self.bfloat16, batch=asked.batch // self.parts, accumulate=asked.accumulate * self.parts)

    def said(self, asked: TrainingSettings) -> list[str]:
        """Its parts that go beyond what was asked for."""
        batch = asked.batch // self.parts
        return [text for text, done in (
            ("gradient checkpointing", self.checkpointing), ("the text encoder off the device", self.text_away),
            ("bfloat16", self.bfloat16 and not asked.bfloat16),
            (f"batch {batch}, accumulated {asked.accumulate * self.parts} times", self.parts > 1)) if done]


def plans(recipe: Recipe[HostLearner], settings: TrainingSettings, running: Running) -> Iterator[Plan]:
    """Ways to run a training, each more sparing than the one before. What was asked for is in all of them."""
    model = recipe.model.denoiser
    plan = Plan(bool(model.checkpointing), False, settings.bfloat16)
    yield plan
    if not (recipe.text or recipe.rows or recipe.subject_set.changes.shuffle) and text_bytes(model):
        plan = replace(plan, text_away=True)
        yield plan
    if model.checkpointing is None:
        plan = replace(plan, checkpointing=True)
        yield plan
    if not settings.bfloat16 and bfloat16_saves(model):
        plan = replace(plan, bfloat16=True)
        yield plan
    while running.splits and settings.batch % (2 * plan.parts) == 0:
        plan = replace(plan, parts=2 * plan.parts)
        yield plan


def text_bytes(model: HostDenoiser) -> int:
    """Bytes of the text encoder that would be free on the model's device without it."""
    patcher = model.clip.patcher
    if patcher.load_device != model.device or patcher.offload_device == patcher.load_device:
        return 0
    return sum(value.nbytes for value in model.text.values())


def bfloat16_saves(model: HostDenoiser) -> bool:
    """True if the device computes in bfloat16, and activations are in float32 otherwise. In half precision it saves nothing."""
    return (any(value.dtype == torch.float32 and value.ndim > 1 for value in model.unet.values())
            and comfy.model_management.should_use_bf16(model.device))


def check_memory(recipe: Recipe[HostLearner], settings: TrainingSettings, running: Running, refuse: bool = True,
                 before: int = 0, prompts: Iterable[str] = ()) -> TrainingSettings:
    """Chooses the first of :func:`plans` that fits, says so on the node, and returns the settings by which it runs.

    ``before`` counts the latents that go through the model before the first step, for pictures of the class;
    ``prompts`` are drawn on the way. Raises ValueError, before anything is
    trained, when no plan fits what is free and what the host can free. Without ``refuse`` that is a warning.
    """
    model, device = recipe.model.denoiser, recipe.model.denoiser.device
    open_choice = model.checkpointing is None
    size = max((spatial_size(example.latents) for example in recipe.subject_set.examples), key=math.prod)
    reserve = WORKSPACE if device.type == "cuda" else 0
    ways, needs = list(plans(recipe, settings, running)), dict[tuple, Need]()
    for plan in ways:
        planned, tried = plan.settings(settings), model.changed(checkpointing=plan.checkpointing)
        try:
            if plan.computing not in needs:
                needs[plan.computing] = estimate.need_of(recipe, tried, planned, recipe.streams * planned.batch, size)
            need = needs[plan.computing]
        except Exception as error:  # attention or packs that need real memory; no training fails for want of an estimate
            log.info("DreamMatcher: how much memory training takes is not known here (%s: %s)", type(error).__name__, error)
            _say(running, [])
            return settings
        beside = text_bytes(model) if plan.text_away else 0
        free = estimate.free_on(device) + beside - reserve
        if need.total > free:
            estimate.make_room(need.total + reserve, model)
            free = estimate.free_on(device) + beside - reserve
        log.info("DreamMatcher: training takes about %.1f GB beside the model (%.1f for what learns, %.1f for activations%s); "
                 "%.1f GB are free on %s", need.total / GB, need.learned / GB, (need.activations + need.text) / GB,
                 "".join(f", {said}" for said in plan.said(settings)), free / GB, device)
        if need.total <= free:
            break
    model.checkpointing = plan.checkpointing
    if plan.text_away:
        sets = [one for one in (recipe.subject_set, recipe.prior if isinstance(recipe, SubjectRecipe) else None) if one]
        model.put_text_away([*(text for one in sets for example in one.examples for text in example.captions), *prompts])
    if need.total > free:
        _too_large(need.total, free, device, open_choice, refuse)
    seconds = _seconds(recipe, tried, planned, size, before)
    _say(running, [*plan.said(settings), f"about {need.total / GB:.1f} GB beside the model, of {free / GB:.1f} GB that are free",
                   *([f"about {duration(seconds)}"] if seconds else [])], plan != ways[0])
    return planned


def _seconds(recipe: Recipe[HostLearner], model: HostDenoiser, settings: TrainingSettings, size: tuple[int, int],
             before: int) -> float:
    """Seconds of all steps and of the passes ``before`` them; 0 where that cannot be told."""
    try:
        pace = estimate.pace_of(recipe, model, settings, size)
    except Exception as error:
        log.info("DreamMatcher: how long training takes is not known here (%s: %s)", type(error).__name__, error)
        return 0.0
    return pace.step * settings.steps + pace.forward * before


def _say(running: Running, plan: list[str], changed: bool = False) -> None:
    """Tells what was left to this pack and how that came out; a plan as it was asked for goes to the log alone."""
    chosen = [*([running.chosen] if running.chosen else []), *plan]
    if running.chosen or changed:
        tell(f"chosen: {'; '.join(chosen)}")
    elif chosen:
        log.info("DreamMatcher: %s", "; ".join(chosen))


def _too_large(needed: int, free: int, device: torch.device, tried: bool, refuse: bool) -> None:
    said = (f"memory: this training takes about {needed / GB:.1f} GB beside the model"
            f"{' even with gradient checkpointing' if tried else ''}, and {free / GB:.1f} GB are free on {device}")
    if refuse:
        raise ValueError(f"{said}; {SMALLER}")
    tell(f"{said}; it is tried all the same")
