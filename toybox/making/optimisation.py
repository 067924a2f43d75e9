"""Common parts of all Toybox trainings: initialisation, optimisers, schedule, averaged weights, exactly resumable checkpoints."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from .muon import Muon
from .precision import has_fast_bfloat16

log = logging.getLogger("toybox")

CHECKPOINT_SECONDS = 180
WARMUP_STEPS = 200
#: share of a schedule after which its rate falls
CONSTANT_SHARE = 0.6
REPORT_STEPS = 200


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


def half_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device multiplies it in hardware; float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))


def rate_factor(step: int, total: int, warmup: int = WARMUP_STEPS) -> float:
    """Learning-rate factor of a step: linear up over ``warmup`` steps, constant, then linear down to zero at ``total``."""
    falling = total - CONSTANT_SHARE * total
    return max(0.0, min((step + 1) / warmup, 1.0, (total - step) / falling))


def as_matrix(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value`` with one row per output of ``weight``; it shares memory when ``value`` is ``weight`` itself."""
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        value = value.permute(0, 2, 3, 1)
    return value.reshape(weight.shape[0], -1)


class Optimisers:
    """Muon for ``network``'s matrices and convolutions, AdamW for the rest of ``model``, at half of Muon's rate."""

    def __init__(self, model: nn.Module, network: nn.Module, device: torch.device):
        self.weights = [value for value in network.parameters() if value.requires_grad and value.dim() > 1]
        self.matrices = [as_matrix(value, value.detach()) for value in self.weights]
        taken = {id(value) for value in self.weights}
        others = [value for value in model.parameters() if value.requires_grad and id(value) not in taken]
        self.rates = [torch.zeros((), device=device) for _ in range(2)]
        self.all = [Muon(self.matrices, self.rates[0]),
                    torch.optim.AdamW(others, lr=self.rates[1], betas=(0.9, 0.99), weight_decay=0.01, fused=True,
                                      capturable=device.type == "cuda")]

    def set_rate(self, rate: float) -> None:
        self.rates[0].fill_(rate)
        self.rates[1].fill_(rate / 2)

    def step(self) -> None:
        for weight, matrix in zip(self.weights, self.matrices):
            if weight.grad is None:
                raise RuntimeError("a weight that learns has no gradient")
            matrix.grad = as_matrix(weight, weight.grad)
            weight.grad = None
        for part in self.all:
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict]:
        return [part.state_dict() for part in self.all]

    def load(self, states: list[dict]) -> None:
        for part, state in zip(self.all, states):
            part.load_state_dict(state)
        self.all[1].param_groups[0]["lr"] = self.rates[1]


class Average:
    """Exponential moving average of parameters, with the usual ramp at the start."""

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float):
        self.decay, self.parameters = decay, parameters
        self.mean = [value.detach().clone() for value in parameters]
        self.weight = torch.zeros((), device=parameters[0].device)

    def set_step(self, step: int) -> None:
        self.weight.fill_(1 - min(self.decay, (2 + step) / (11 + step)))

    @torch.no_grad()
    def update(self) -> None:
        away = torch._foreach_sub([value.detach() for value in self.parameters], self.mean)
        torch._foreach_mul_(away, self.weight)
        torch._foreach_add_(self.mean, away)

    @torch.no_grad()
    def apply(self) -> None:
        for value, mean in zip(self.parameters, self.mean):
            value.copy_(mean)


class Captured:
    """A function of no arguments on fixed tensors. On CUDA it is recorded after some calls and then replayed as one graph.

    Thousands of small kernels then cost no Python. Random numbers follow the seed that is set before each call.
    """

    ORDINARY_CALLS = 4

    def __init__(self, function: Callable[[], torch.Tensor], device: torch.device):
        self.function, self.device = function, device
        self.calls = 0
        self.recorded: tuple[torch.cuda.CUDAGraph, torch.Tensor] | None = None

    def __call__(self) -> torch.Tensor:
        if self.device.type != "cuda":
            return self.function()
        self.calls += 1
        if self.calls <= self.ORDINARY_CALLS:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                result = self.function()
            torch.cuda.current_stream().wait_stream(beside)
            return result
        if self.recorded is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self.function()
            self.recorded = graph, result
        graph, result = self.recorded
        graph.replay()
        return result


class Run:
    """One resumable training: model, optimisers, averages and step count in one checkpoint file.

    Random numbers are seeded by ``step``, so a run that was cut off goes on as if it had not been.
    """

    def __init__(self, name: str, folder: Path, model: nn.Module, steps: int, rate: float,
                 decays: tuple[float, ...] = (0.999,), network: nn.Module | None = None, warmup: int = WARMUP_STEPS):
        self.name, self.path, self.model, self.steps, self.rate = name, folder / f"{name}.pt", model, steps, rate
        self.warmup = warmup
        self.parameters = [value for value in model.parameters() if value.requires_grad]
        self.device = self.parameters[0].device
        self.optimisers = Optimisers(model, network or model, self.device)
        self.averages = [Average(self.parameters, decay) for decay in decays]
        self.step, self.saved = 0, time.monotonic()
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location=self.device)
            model.load_state_dict(state["model"])
            self.optimisers.load(state["optimisers"])
            self.step = state["step"]
            for average, mean in zip(self.averages, state["averages"]):
                average.mean = mean
            log.info("%s resumes at step %d of %d", name, self.step, steps)
        self.since = (time.monotonic(), self.step)

    def save(self) -> None:
        fresh = self.path.with_suffix(".new")
        torch.save({"model": self.model.state_dict(), "optimisers": self.optimisers.state(), "step": self.step,
                    "averages": [average.mean for average in self.averages]}, fresh)
        os.replace(fresh, self.path)
        self.saved = time.monotonic()

    def stepper(self, loss_of: Callable[[], torch.Tensor]) -> Captured:
        """One optimiser step on ``loss_of()``, which draws its own random batch, in the form that :meth:`advance` takes."""
        def step() -> torch.Tensor:
            loss = loss_of()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
            self.optimisers.step()
            for average in self.averages:
                average.update()
            return loss.detach()

        return Captured(step, self.device)

    def advance(self, step: Captured) -> None:
        """Makes one step; logs and saves as time passes. Raises FloatingPointError when a loss that it looks at is not finite."""
        torch.manual_seed(self.step)
        self.optimisers.set_rate(self.rate * rate_factor(self.step, self.steps, self.warmup))
        for average in self.averages:
            average.set_step(self.step)
        loss = step()
        self.step += 1
        due = self.step == self.steps or time.monotonic() - self.saved > CHECKPOINT_SECONDS
        if due or self.step % REPORT_STEPS == 0:
            self.report(loss.item())
        if due:
            self.save()

    def report(self, loss: float) -> None:
        if not abs(loss) < float("inf"):
            raise FloatingPointError(f"{self.name}: the loss is {loss} at step {self.step}; {self.path} is from before")
        started, first = self.since
        log.info("%s %d/%d loss %.4f, %.4f s a step", self.name, self.step, self.steps, loss,
                 (time.monotonic() - started) / (self.step - first))

    def finish(self, average: int = 0) -> None:
        """Leaves the averaged weights in the model."""
        if self.averages:
            self.averages[average].apply()
