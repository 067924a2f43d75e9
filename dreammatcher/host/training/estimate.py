"""Estimates, before the first step, the memory that a training will take beside the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ...sizes import spatial_size
from ...training.optimisers import state_per_number
from ...training.recipe import Recipe
from ...training.settings import TrainingSettings
from ...weights import LowRank
from ..graph.notes import tell
from ..model.recompute import BLOCKS
from .model import HostDenoiser, HostLearner

log = logging.getLogger(__name__)

GB = 1 << 30
REMEDY = ("turn on gradient_checkpointing in DreamMatcher Training Options, or bfloat16, or give a smaller batch or resolution; "
          "a LoRA takes less than a full training")


SMALLER = "use a model with smaller pictures (SD1.x), close other programs on the card, or train on one with more memory"


@dataclass(frozen=True)
class Need:
    """Bytes beside the model."""

    learned: int  # what learns, its gradients, the optimiser's state, and overrides for the model's weights
    activations: int  # of one batch, kept for the gradient

    @property
    def total(self) -> int:
        return self.learned + self.activations


def need_of(recipe: Recipe[HostLearner], model: HostDenoiser, settings: TrainingSettings, rows: int,
            size: tuple[int, int]) -> Need:
    """The memory that training takes on ``rows`` latents of a ``size`` in cells at once."""
    count = sum(value.numel() for value in recipe.learned.parameters())
    each = 4 + 4 + state_per_number(settings.optimiser.name) + (4 if settings.average else 0)
    low = {} if recipe.unet is None else recipe.unet.low_rank()
    whole = [] if recipe.unet is None else list(recipe.unet.differences(low))
    overrides = sum(model.unet[name].nbytes for name in whole)
    text = bool(recipe.text or recipe.rows)
    return Need(each * count + 2 * overrides, activations(model, whole, low, text, rows, size, settings.bfloat16))


def activations(model: HostDenoiser, learning: list[str], low: Mapping[str, LowRank], text: bool, rows: int,
                size: tuple[int, int], bfloat16: bool) -> int:
    """Bytes that the UNet keeps for the gradient of some of its weights, whole or ``low`` in rank, and of the ``text`` if that
    learns.

    They are those of some of its weights, whole or ``low`` in rank, and of the ``text`` if that learns. The UNet itself is run,
    on tensors that have a shape and no memory. With checkpointing the largest block counts on top, which runs again while the
    others are kept.
    """
    base = model.model.model
    kept, largest = _Kept(), 0
    with torch.inference_mode(False), torch.enable_grad(), \
            torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
        caption = model.encode([""])
        times = torch.zeros(rows).long()
        with FakeTensorMode(allow_non_fake_inputs=True):
            weights = {name: _like(value).requires_grad_(name in learning) for name, value in model.unet.items()}
            factors = {name: LowRank(_like(value.down).requires_grad_(), _like(value.up).requires_grad_(), value.scale)
                       for name, value in low.items()}
            seen = caption.each(lambda value: torch.empty(rows, *value.shape[1:], device=value.device))
            seen.cross_attention.requires_grad_(text)
            noisy = torch.empty(rows, base.latent_format.latent_channels, *size, device=model.device)
            with torch.autograd.graph.saved_tensors_hooks(kept.note, _itself):
                model.changed(unet=weights).predict(noisy, times, seen, factors)
            if model.checkpointing:
                parts = _PerBlock()
                with torch.autograd.graph.saved_tensors_hooks(parts.kept.note, _itself), parts.of(base.diffusion_model):
                    model.changed(unet=weights, checkpointing=False).predict(noisy, times, seen, factors)
                largest = parts.largest
    return kept.beside(weights) + largest


class _Kept:
    """Storages that autograd holds, each counted once."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.storages.setdefault(storage._cdata, storage)
        return tensor

    def beside(self, weights: Mapping[str, torch.Tensor]) -> int:
        weight_storages = {value.untyped_storage()._cdata for value in weights.values()}
        return sum(storage.nbytes() for place, storage in self.storages.items() if place not in weight_storages)


class _PerBlock:
    """Measures the most bytes that one block adds to those kept."""

    def __init__(self) -> None:
        self.kept, self.largest, self.before = _Kept(), 0, 0

    @contextmanager
    def of(self, unet: torch.nn.Module) -> Iterator[None]:
        def begun(*_: object) -> None:
            self.before = self.kept.beside({})

        def ended(*_: object) -> None:
            self.largest = max(self.largest, self.kept.beside({}) - self.before)

        blocks = [block for block in unet.modules() if isinstance(block, BLOCKS)]
        hooks = [block.register_forward_pre_hook(begun) for block in blocks]
        hooks += [block.register_forward_hook(ended) for block in blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _like(value: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor of the same shape, precision and device."""
    return torch.empty(value.shape, dtype=value.dtype, device=value.device)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def free_on(device: torch.device) -> int:
    """Bytes that a device has left."""
    return comfy.model_management.get_free_memory(device)


def make_room(size: int, model: HostDenoiser) -> None:
    """Has the host take other models off the device, as it does for every model that it loads."""
    needed = (model.model, model.clip.patcher)
    kept = [loaded for loaded in comfy.model_management.current_loaded_models if any(loaded.model is one for one in needed)]
    comfy.model_management.free_memory(size, model.device, keep_loaded=kept)


def check_memory(recipe: Recipe[HostLearner], settings: TrainingSettings, refuse: bool = True) -> None:
    """Prints the estimate, and turns checkpointing on where that is left to it and memory needs it.

    Raises ValueError, before anything is trained, when it does not fit what is free and what the host can free. Without
    ``refuse`` that is a warning.
    """
    model = recipe.model.denoiser
    open_choice, device = model.checkpointing is None, model.device
    size = max((spatial_size(example.latents) for example in recipe.subject_set.examples), key=math.prod)
    for checkpointing in (False, True) if open_choice else (model.checkpointing,):
        try:
            need = need_of(recipe, model.changed(checkpointing=checkpointing), settings, recipe.streams * settings.batch,
                           size)
        except Exception as error:  # attention or packs that need real memory; no training fails for want of an estimate
            log.info("DreamMatcher: how much memory training takes is not known here (%s: %s)", type(error).__name__, error)
            return
        free = free_on(device)
        if need.total > free:
            make_room(need.total, model)
            free = free_on(device)
        log.info("DreamMatcher: training takes about %.1f GB beside the model (%.1f for what learns, %.1f for activations%s); "
                 "%.1f GB are free on %s", need.total / GB, need.learned / GB, need.activations / GB,
                 " with gradient checkpointing" if checkpointing else "", free / GB, device)
        model.checkpointing = checkpointing
        if need.total <= free:
            return
    said = (f"memory: this training takes about {need.total / GB:.1f} GB beside the model"
            f"{' even with gradient checkpointing' if open_choice else ''}, and {free / GB:.1f} GB are free on {device}")
    if refuse:
        raise ValueError(f"{said}; {SMALLER if open_choice else REMEDY}")
    tell(f"{said}; it is tried all the same")
