"""What every Toybox training shares: initialisation, optimisers, schedule, averaged weights, checkpoints that resume exactly."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger("toybox")

CHECKPOINT_SECONDS = 180
WARMUP_STEPS = 200
#: share of a schedule after which its rate falls
CONSTANT_SHARE = 0.6


def initialise(module: nn.Module) -> None:
    """Standard initial values: the host's layers are made without any, since it always loads weights."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.Conv2d.reset_parameters(layer)
        elif isinstance(layer, nn.Linear):
            nn.Linear.reset_parameters(layer)
        elif isinstance(layer, (nn.GroupNorm, nn.LayerNorm)) and layer.weight is not None:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)


def keep_norm_inputs(module: nn.Module) -> None:
    """Older hosts add residuals in place, which spoils the input that a LayerNorm needs for its gradient: clone it."""
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.register_forward_pre_hook(lambda _, inputs: tuple(value.clone() for value in inputs))


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; where it does not, float32 is forty times faster."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def rate_factor(step: int, total: int) -> float:
    """Learning-rate factor of a step: linear warm-up, constant, then linear down to zero at ``total``."""
    falling = total - CONSTANT_SHARE * total
    return max(0.0, min((step + 1) / WARMUP_STEPS, 1.0, (total - step) / falling))


def as_matrix(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value`` with one row per output of ``weight``; it shares memory when ``value`` is ``weight`` itself."""
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        value = value.permute(0, 2, 3, 1)
    return value.reshape(weight.shape[0], -1)


class Optimisers:
    """Muon (Jordan et al. 2024) for ``network``'s matrices and convolutions, AdamW for the rest of ``model``; one schedule.

    Muon's update is scaled to AdamW's size (Liu et al. 2025), so that both take rates of the same order.
    """

    def __init__(self, model: nn.Module, network: nn.Module, rate: float, steps: int):
        self.weights = [value for value in network.parameters() if value.requires_grad and value.dim() > 1]
        self.matrices = [as_matrix(value, value.detach()) for value in self.weights]
        taken = {id(value) for value in self.weights}
        others = [value for value in model.parameters() if value.requires_grad and id(value) not in taken]
        self.all = [torch.optim.Muon(self.matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
                    torch.optim.AdamW(others, lr=rate / 2, betas=(0.9, 0.99), weight_decay=0.01, fused=True)]
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: rate_factor(step, steps)) for one in self.all]

    def step(self) -> None:
        for weight, matrix in zip(self.weights, self.matrices):
            matrix.grad = None if weight.grad is None else as_matrix(weight, weight.grad)
            weight.grad = None
        for part in (*self.all, *self.schedules):
            part.step()
        for part in self.all:
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict]:
        return [part.state_dict() for part in (*self.all, *self.schedules)]

    def load(self, states: list[dict]) -> None:
        for part, state in zip((*self.all, *self.schedules), states):
            part.load_state_dict(state)


class Average:
    """Exponential moving average of parameters, with the usual ramp at the start."""

    def __init__(self, parameters: list[torch.Tensor], decay: float):
        self.decay, self.updates = decay, 0
        self.parameters = parameters
        self.mean = [value.detach().clone() for value in parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.mean, [value.detach() for value in self.parameters], 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        for value, mean in zip(self.parameters, self.mean):
            value.copy_(mean)


class Run:
    """One resumable training: model, optimisers, averages and step count in one checkpoint file.

    Training code seeds its random numbers by ``step``, so a run that was cut off goes on as if it had not been.
    """

    def __init__(self, name: str, folder: Path, model: nn.Module, steps: int, rate: float,
                 decays: tuple[float, ...] = (0.999,), network: nn.Module | None = None):
        self.name, self.path, self.model, self.steps = name, folder / f"{name}.pt", model, steps
        self.parameters = [value for value in model.parameters() if value.requires_grad]
        self.optimisers = Optimisers(model, network or model, rate, steps)
        self.averages = [Average(self.parameters, decay) for decay in decays]
        self.step, self.saved, self.running = 0, time.monotonic(), None
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            model.load_state_dict(state["model"])
            self.optimisers.load(state["optimisers"])
            self.step = state["step"]
            for average, mean in zip(self.averages, state["averages"]):
                average.mean, average.updates = mean, self.step
            log.info("%s resumes at step %d of %d", name, self.step, steps)
        self.since = (time.monotonic(), self.step)

    def save(self) -> None:
        fresh = self.path.with_suffix(".new")
        torch.save({"model": self.model.state_dict(), "optimisers": self.optimisers.state(), "step": self.step,
                    "averages": [average.mean for average in self.averages]}, fresh)
        os.replace(fresh, self.path)
        self.saved = time.monotonic()

    def descend(self, loss: torch.Tensor) -> None:
        """One optimiser step on ``loss``; logs and saves as time passes. Raises FloatingPointError when it is not finite."""
        value = loss.item()
        if not abs(value) < float("inf"):
            raise FloatingPointError(f"{self.name}: the loss is {value} at step {self.step}; {self.path} is from before")
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimisers.step()
        for average in self.averages:
            average.update()
        self.step += 1
        self.running = value if self.running is None else 0.99 * self.running + 0.01 * value
        if self.step % 100 == 0:
            started, first = self.since
            log.info("%s %d/%d loss %.4f, %.2f s a step", self.name, self.step, self.steps, self.running,
                     (time.monotonic() - started) / (self.step - first))
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS or self.step == self.steps:
            self.save()

    def finish(self, average: int = 0) -> None:
        """Leaves the averaged weights in the model."""
        if self.averages:
            self.averages[average].apply()
