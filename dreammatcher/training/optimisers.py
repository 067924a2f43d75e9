"""Optimisers and learning-rate schedules: torch's AdamW, transformers' Adafactor, and two of packages that may be installed."""

from __future__ import annotations

import importlib
import math

import torch

from .settings import ADAFACTOR, ADAMW, ADAMW_8BIT, CONSTANT, COSINE, PRODIGY, OptimiserSettings
from .trainables import Group

#: optimisers of other packages: name -> (package, module, class)
OTHERS = {ADAFACTOR: ("transformers", "transformers.optimization", "Adafactor"),
          PRODIGY: ("prodigyopt", "prodigyopt", "Prodigy"), ADAMW_8BIT: ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit")}
#: Adafactor with a rate of its own and steps of that length. With scaling, a step is as long as the parameter is large, and what
#: begins at zero, as the factor B of a LoRA and every difference do, never moves (Shazeer and Stern 2018, Sec. 8)
PLAIN_STEPS = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
#: under it Prodigy, which multiplies its own estimate by the rate, learns next to nothing
LEAST_PRODIGY = 0.1

#: bytes of an optimiser's state for each number that learns; Adafactor keeps two vectors of a matrix
STATES = {ADAMW: 8, ADAFACTOR: 0, PRODIGY: 16, ADAMW_8BIT: 2}


def state_per_number(name: str) -> int:
    """Bytes of the named optimiser's state for each number that learns."""
    return STATES[name]


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
    if settings.name == ADAFACTOR:
        return chosen(parameters, **PLAIN_STEPS, weight_decay=decay)
    return chosen(parameters, betas=settings.betas, eps=settings.epsilon, weight_decay=decay)


def _check_prodigy(rates: list[float]) -> None:
    if min(rates) < LEAST_PRODIGY:
        raise ValueError(f"rate: Prodigy finds the rate by itself and multiplies it by yours, {min(rates):g}, so next to nothing "
                         f"would be learned; set every rate of the node to 1, or choose {ADAMW}")
    if len(set(rates)) > 1:
        said = ", ".join(f"{one:g}" for one in rates)
        raise ValueError(f"rate: Prodigy takes one rate for all that learns, and there are {said}; set every rate of the node to "
                         f"1, or choose {ADAMW}")


def rate_factor(step: int, steps: int, settings: OptimiserSettings) -> float:
    """Share of the full rate at a step: linear warm-up, then constant or down to zero at ``steps`` along a line or a cosine."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    if settings.schedule == CONSTANT:
        return 1.0
    progress = min(1.0, (step - settings.warmup) / max(1, steps - settings.warmup))
    return 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == COSINE else 1 - progress


def schedule_of(optimiser: torch.optim.Optimizer, steps: int, settings: OptimiserSettings) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, steps, settings))
