"""Optimisers and learning-rate schedules: torch's AdamW, transformers' Adafactor, and those of packages that may be installed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from typing import Any

import torch

from .settings import (
    ADAFACTOR,
    ADAMW,
    ADAMW_8BIT,
    CAME,
    CONSTANT,
    COSINE,
    LION,
    PRODIGY,
    SCHEDULE_FREE,
    OptimiserSettings,
)
from .trainables import Group

#: optimisers of other packages: name -> (package, module, class)
OTHERS = {ADAFACTOR: ("transformers", "transformers.optimization", "Adafactor"),
          PRODIGY: ("prodigyopt", "prodigyopt", "Prodigy"), ADAMW_8BIT: ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit"),
          LION: ("lion-pytorch", "lion_pytorch", "Lion"), CAME: ("came-pytorch", "came_pytorch", "CAME"),
          SCHEDULE_FREE: ("schedulefree", "schedulefree", "AdamWScheduleFree")}
#: Adafactor with a rate of its own and steps of that length. With scaling, a step is as long as the parameter is large, and what
#: begins at zero, as the factor B of a LoRA and every difference do, never moves (Shazeer and Stern 2018, Sec. 8)
PLAIN_STEPS = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
#: under it Prodigy, which multiplies its own estimate by the rate, learns next to nothing
LEAST_PRODIGY = 0.1

#: of CAME's mean of instabilities (Luo et al. 2023)
CAME_BETA = 0.9999

#: bytes of an optimiser's state for each number that learns, beside the vectors of :data:`FACTORED`
STATES = {ADAMW: 8, ADAFACTOR: 0, PRODIGY: 16, ADAMW_8BIT: 2, LION: 4, CAME: 4, SCHEDULE_FREE: 8}
#: second moments of which a row's and a column's mean is kept for a matrix, and one number for each of a vector
FACTORED = {ADAFACTOR: 1, CAME: 2}
#: tensors of fewer numbers are not kept in 8 bits (bitsandbytes' min_8bit_size)
SMALLEST_IN_8_BITS = 4096


def state_bytes(name: str, parameters: Iterable[torch.Tensor]) -> int:
    """Bytes of the named optimiser's state for all ``parameters``."""
    return sum(_state_bytes(name, value) for value in parameters)


def _state_bytes(name: str, value: torch.Tensor) -> int:
    count = value.numel()
    if name == ADAMW_8BIT and count < SMALLEST_IN_8_BITS:
        return STATES[ADAMW] * count
    if name not in FACTORED:
        return STATES[name] * count
    if value.ndim < 2:
        return (STATES[name] + 4) * count
    return STATES[name] * count + 4 * FACTORED[name] * (count // value.shape[-1] + count // value.shape[-2])


def optimiser_of(groups: list[Group], settings: OptimiserSettings) -> torch.optim.Optimizer:
    """An optimiser over parameter groups with their own rates.

    Raises ValueError, naming the package, when the chosen one is not installed, and for rates that Prodigy cannot take.
    """
    if settings.name == PRODIGY:
        _check_prodigy([group.rate for group in groups])
    parameters = [{"params": group.parameters, "lr": group.rate} for group in groups]
    decay = settings.weight_decay
    if settings.name == ADAMW:
        return torch.optim.AdamW(parameters, betas=settings.betas, eps=settings.epsilon, weight_decay=decay)
    package, module, name = OTHERS[settings.name]
    try:
        chosen = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"optimiser: {settings.name} needs the package {package}, which is not installed ({error}); install it "
                         f"into ComfyUI's environment or choose {ADAMW}") from error
    own: dict[str, Any] = {"betas": settings.betas, "eps": settings.epsilon}
    if settings.name == ADAFACTOR:
        own = PLAIN_STEPS
    elif settings.name == LION:
        own = {}  # its betas are others (0.9, 0.99)
    elif settings.name == CAME:
        own = {"lr": parameters[0]["lr"], "betas": (*settings.betas, CAME_BETA)}
    optimiser = chosen(parameters, weight_decay=decay, **own)
    if settings.name == SCHEDULE_FREE:
        optimiser.train()
    return optimiser


def _check_prodigy(rates: list[float]) -> None:
    if min(rates) < LEAST_PRODIGY:
        raise ValueError(f"rate: Prodigy finds the rate by itself and multiplies it by yours, {min(rates):g}, so next to nothing "
                         f"would be learned; set every rate of the node to 1, or choose {ADAMW}")
    if len(set(rates)) > 1:
        said = ", ".join(f"{one:g}" for one in rates)
        raise ValueError(f"rate: Prodigy takes one rate for all that learns, and there are {said}; set every rate of the node to "
                         f"1, or choose {ADAMW}")


def rate_factor(step: int, steps: int, settings: OptimiserSettings) -> float:
    """Share of the full rate at a step: linear warm-up, then constant or down to zero at ``steps`` along a line or a cosine.

    CAME's is multiplied by the bias correction that its mean of instabilities lacks: that begins at zero, and a step is divided
    by its root, so that the first thousand would be ten to fifty times as long as the rate.
    """
    share = _scheduled(step, steps, settings)
    return share * math.sqrt(1 - CAME_BETA ** (step + 1)) if settings.name == CAME else share


def _scheduled(step: int, steps: int, settings: OptimiserSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    if settings.schedule == CONSTANT:
        return 1.0
    progress = min(1.0, (step - settings.warmup) / max(1, steps - settings.warmup))
    return 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == COSINE else 1 - progress


def schedule_of(optimiser: torch.optim.Optimizer, steps: int, settings: OptimiserSettings) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, steps, settings))
