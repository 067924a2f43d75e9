"""The start of a sampling session."""

from __future__ import annotations

import torch

from ...matching.matcher import Matcher
from ...matching.plan import Plan
from ..compiling import hide
from ..session import Clock, RowBook, Session
from .references import References


def begin(plan: Plan, base: torch.nn.Module, weights: object, sampling: object, noise: torch.Tensor | None) -> Session:
    """A fresh session of a plan: percentages become sigmas here, once, by the model's noise schedule ``sampling``."""
    plan.trace.clear()
    plan.trace.off = plan.settings.strength == 0
    hide()
    for view in plan.views:
        view.store.start_run()
    clock = Clock(sampling, *(float(sampling.percent_to_sigma(share)) for share in (plan.settings.start, plan.settings.end)))
    size = tuple(noise.shape[-2:]) if torch.is_tensor(noise) and noise.ndim == 4 else None
    references = References(base, plan.structure, plan.views, weights)
    return Session(plan, base, clock, RowBook(size), Matcher(plan.views, plan.mask, plan.settings, references))
