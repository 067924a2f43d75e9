"""Estimates, before the first step, the memory and time that a training will take beside the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ...training.optimisers import state_bytes
from ...training.recipe import Recipe
from ...training.settings import TrainingSettings
from ...training.trainables import Trainable
from ...weights import LowRank
from ..model.recompute import BLOCKS
from .model import HostDenoiser, HostLearner

GB = 1 << 30
#: share of the speed of a large product of matrices that a step of training reaches
REACHED = 0.4
#: passes in a step for each forward one: the backward pass to activations, that to whole weights, and the one made again
BACK, TO_WEIGHTS, AGAIN = 1, 1, 1


@dataclass(frozen=True)
class Need:
    """Bytes beside the model."""

    learned: int  # what learns, its gradients, the optimiser's state, and overrides for the model's weights
    activations: int  # of one batch in the UNet, kept for the gradient
    text: int = 0  # of its captions in the text encoder, where that or a word learns, beside those

    @property
    def total(self) -> int:
        return self.learned + self.activations + self.text


def need_of(recipe: Recipe[HostLearner], model: HostDenoiser, settings: TrainingSettings, rows: int,
            size: tuple[int, int]) -> Need:
    """The memory that training takes on ``rows`` latents of a ``size`` in cells at once."""
    parameters = list(recipe.learned.parameters())
    count = sum(value.numel() for value in parameters)
    each = 4 + 4 + (4 if settings.average else 0)  # the weights, their gradients, their average
    low = {} if recipe.unet is None else recipe.unet.low_rank()
    whole = [] if recipe.unet is None else list(recipe.unet.whole_names())
    overrides = sum(model.unet[name].nbytes for name in whole)
    text = bool(recipe.text or recipe.rows)
    kept = activations(model, whole, low, text, rows, size, settings.bfloat16)
    caption = text_activations(model, recipe.text) if text else 0
    # with checkpointing one caption after the other runs again, when the UNet's activations are gone
    learned = each * count + state_bytes(settings.optimiser.name, parameters)
    return Need(learned + 2 * overrides, kept, max(0, caption - kept) if model.checkpointing else rows * caption)


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


def text_activations(model: HostDenoiser, text: Trainable | None) -> int:
    """Bytes that the text encoder keeps of one caption for the gradient of ``text``, or of a word's vectors without it."""
    kept = _Kept()
    with torch.inference_mode(False), torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        low = {} if text is None else text.low_rank()
        whole = {name for name in model.text if "token_embedding" in name} if text is None else set(text.whole_names())
        weights = {name: _like(value) for name, value in model.text.items()}
        learns = {name: weights[name].requires_grad_() for name in whole}
        factors = {name: LowRank(_like(value.down).requires_grad_(), _like(value.up).requires_grad_(), value.scale)
                   for name, value in low.items()}
        with torch.autograd.graph.saved_tensors_hooks(kept.note, _itself):
            model.changed(text=weights, checkpointing=False).encode([""], {**learns, **factors})
    return kept.beside(weights)


def work_of(model: HostDenoiser, rows: int, size: tuple[int, int]) -> int:
    """Floating-point operations of the UNet's forward pass on ``rows`` latents of a ``size`` in cells."""
    base, counter = model.model.model, FlopCounterMode(display=False)
    with torch.inference_mode(False), torch.no_grad():
        caption = model.encode([""])
        times = torch.zeros(rows).long()
        with FakeTensorMode(allow_non_fake_inputs=True), counter:
            weights = {name: _like(value) for name, value in model.unet.items()}
            seen = caption.each(lambda value: torch.empty(rows, *value.shape[1:], device=value.device))
            noisy = torch.empty(rows, base.latent_format.latent_channels, *size, device=model.device)
            model.changed(unet=weights, checkpointing=False).predict(noisy, times, seen, {})
    return counter.get_total_flops()


def speed_of(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations in a second that a device makes in products of matrices, measured in a moment."""
    side = 4096 if device.type == "cuda" else 512
    with torch.inference_mode():
        factor = torch.ones(side, side, device=device, dtype=dtype)
        best = float("inf")
        for _ in range(4):
            _wait(device)
            begun = time.perf_counter()
            factor @ factor
            _wait(device)
            best = min(best, time.perf_counter() - begun)
    return 2 * side ** 3 / max(best, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Pace:
    """Seconds that the UNet will take, by floating-point operations and the device's speed: good to a factor of three."""

    forward: float  # a latent's forward pass
    step: float  # of training


def pace_of(recipe: Recipe[HostLearner], model: HostDenoiser, settings: TrainingSettings, size: tuple[int, int]) -> Pace:
    """The pace of a training on latents of a ``size`` in cells."""
    whole = recipe.unet is not None and bool(recipe.unet.whole_names())
    precision = torch.bfloat16 if settings.bfloat16 else next(value.dtype for value in model.unet.values() if value.ndim > 1)
    forward = work_of(model, 1, size) / (REACHED * speed_of(model.device, precision))
    passes = 1 + BACK + TO_WEIGHTS * whole + AGAIN * bool(model.checkpointing)
    return Pace(forward, passes * forward * settings.accumulate * recipe.streams * settings.batch)


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
