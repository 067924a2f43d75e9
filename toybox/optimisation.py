"""What every Toybox training shares: initialisation, averaged weights and checkpoints that resume."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger("toybox")

CHECKPOINT_SECONDS = 180


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


def cosine_rate(step: int, total: int, warmup: int = 200) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to 2%."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


class Average:
    """Exponential moving average of parameters, with the usual ramp at the start."""

    def __init__(self, parameters: list[torch.Tensor], decay: float = 0.999):
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
    """One resumable training: model, optimiser, schedule, average and step count in one checkpoint file."""

    def __init__(self, name: str, folder: Path, model: nn.Module, steps: int, rate: float, average: bool = True):
        self.path, self.model, self.steps = folder / f"{name}.pt", model, steps
        self.parameters = [value for value in model.parameters() if value.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: cosine_rate(step, steps))
        self.average = Average(self.parameters) if average else None
        self.name, self.step, self.saved, self.started = name, 0, time.monotonic(), time.monotonic()
        self.running = None
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            self.step = state["step"]
            if self.average:
                self.average.mean, self.average.updates = state["average"], state["updates"]
            log.info("%s resumes at step %d of %d", name, self.step, steps)

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                 "schedule": self.schedule.state_dict(), "step": self.step}
        if self.average:
            state |= {"average": self.average.mean, "updates": self.average.updates}
        fresh = self.path.with_suffix(".new")
        torch.save(state, fresh)
        os.replace(fresh, self.path)
        self.saved = time.monotonic()

    def descend(self, loss: torch.Tensor) -> None:
        """One optimiser step on ``loss``; logs and saves as time passes."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimiser.step()
        self.schedule.step()
        if self.average:
            self.average.update()
        self.step += 1
        value = loss.item()
        self.running = value if self.running is None else 0.99 * self.running + 0.01 * value
        if self.step % 100 == 0:
            log.info("%s %d/%d loss %.4f, %.0f s", self.name, self.step, self.steps, self.running,
                     time.monotonic() - self.started)
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS or self.step == self.steps:
            self.save()

    def finish(self) -> None:
        if self.average:
            self.average.apply()
