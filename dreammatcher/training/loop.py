"""The training loop that every recipe shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import state as states
from .optimisers import optimiser_of, schedule_of
from .parallel import ALONE, Share
from .recipe import Recipe
from .settings import TrainingSettings
from .state import Checkpoint

REMEDY = "use a lower rate, or another precision (bfloat16 on or off)"


@dataclass(eq=False)
class Training:
    """One training: the recipe, its optimiser, and how far it is."""

    recipe: Recipe
    settings: TrainingSettings
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of each step
    share: Share = ALONE
    made: int = field(default=0, init=False)  # steps since the run was begun or resumed

    def __post_init__(self) -> None:
        groups = self.recipe.groups()
        self.parameters = [value for group in groups for value in group.parameters]
        self.optimiser = optimiser_of(groups, self.settings.optimiser)
        self.schedule = schedule_of(self.optimiser, self.settings.steps, self.settings.optimiser)
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.scale = self.recipe.scale
        self.average = None
        if self.settings.average:
            self.average = AveragedModel(self.recipe.learned, multi_avg_fn=get_ema_multi_avg_fn(self.settings.average))

    def advance(self) -> float:
        """One optimiser step on ``accumulate`` batches. When something is raised while gradients are made, nothing of it is kept.

        Raises FloatingPointError when the loss is not finite, or gradients are not even without a scale.
        """
        before = self.generator.get_state()
        try:
            total = self._gradients()
            while not self._clipped():
                if self.scale <= 1:
                    raise FloatingPointError(f"a gradient is not finite at step {self.step}; {REMEDY}")
                self.scale /= 2  # too large for half precision: once more with less
                self.generator.set_state(before)
                self.optimiser.zero_grad(set_to_none=True)
                total = self._gradients()
        except BaseException:
            self.generator.set_state(before)
            self.optimiser.zero_grad(set_to_none=True)
            raise
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.recipe.learned)
        self.step, self.made = self.step + 1, self.made + 1
        self.losses.append(total)
        return total

    def _gradients(self) -> float:
        """Loss of a step, its gradients left on the parameters. Raises FloatingPointError when it is not finite."""
        total = 0.0
        for _ in range(self.settings.accumulate):
            loss = self.recipe.loss(self.settings.batch, self.generator, self.share) / self.settings.accumulate
            found = self.share.mean(loss.detach().clone()).item()  # the same everywhere: all go on, or none
            if not math.isfinite(found):
                raise FloatingPointError(f"the loss is {found} at step {self.step}; {REMEDY}")
            (loss * self.scale).backward()
            total += found
        for value in self.parameters if self.share.processes > 1 else ():
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad  # every process sends as many
        self.share.average([value.grad for value in self.parameters if value.grad is not None])
        return total

    def _clipped(self) -> bool:
        """Takes the scale out of the gradients and clips their norm. Whether they are finite."""
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        if self.scale != 1:
            torch._foreach_div_(gradients, self.scale)
        limit = self.settings.optimiser.clip or float("inf")
        return bool(torch.isfinite(nn.utils.clip_grad_norm_(self.parameters, limit)))

    def state(self) -> dict:
        return {"step": self.step, "losses": self.losses, "scale": self.scale, "learned": self.recipe.learned.state_dict(),
                "optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict(),
                "generator": self.generator.get_state(), "average": self.average and self.average.state_dict()}

    def restore(self, state: dict) -> None:
        self.step, self.losses, self.scale = state["step"], state["losses"], state["scale"]
        self.recipe.learned.load_state_dict(state["learned"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def finish(self) -> None:
        """Leaves the averaged weights, if an average is kept, as what was learned."""
        if self.average is not None:
            self.recipe.learned.load_state_dict(self.average.module.state_dict())


def train(recipe: Recipe, settings: TrainingSettings, checkpoint: Checkpoint | None = None,
          after_step: Callable[[Training], bool | None] = lambda training: None, share: Share = ALONE) -> Training:
    """Trains to the last step, from the state in ``checkpoint`` if there is one, and leaves what was learned in the recipe.

    ``after_step`` may raise to stop, as the host's interrupt does, or return True to be content with what is learned so far: the
    state is written first. Every process reads the state, the first one writes it. Raises ValueError for a state of another
    training.
    """
    training = Training(recipe, settings, share=share)
    kept = states.read(checkpoint.path, checkpoint.job) if checkpoint else None
    if kept is not None:
        training.restore(kept)

    def keep() -> None:
        if checkpoint and share.first and training.losses:
            states.write(checkpoint.path, training.state(), checkpoint.job)

    try:
        while training.step < settings.steps:
            training.advance()
            if checkpoint and training.step % checkpoint.every == 0:
                keep()
            if after_step(training):
                break
    except BaseException:
        keep()
        raise
    keep()
    training.finish()
    return training
