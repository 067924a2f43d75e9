"""The training loop that every recipe shares."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..finite import NotFinite
from . import state as states
from .denoising import FrozenModel
from .optimisers import optimiser_of, rate_factor, schedule_of
from .parallel import ALONE, Share
from .recipe import Recipe
from .settings import SCHEDULE_FREE, TrainingSettings
from .state import Checkpoint

log = logging.getLogger(__name__)

REMEDY = "use a lower rate, or another precision (bfloat16 on or off)"
#: batches in a row whose loss or gradient is not finite, after which a run gives up
PATIENCE = 10


@dataclass(eq=False)
class Training:
    """One training: the recipe, its optimiser, and how far it is."""

    recipe: Recipe[FrozenModel]
    settings: TrainingSettings
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of each step
    share: Share = ALONE
    steps_made: int = field(default=0, init=False)  # steps since the run was begun or resumed
    skipped: int = field(default=0, init=False)  # batches that were not learned from, as long as the training lasts
    stuck: bool = field(default=False, init=False)  # it gave up

    def __post_init__(self) -> None:
        self.groups = self.recipe.groups()
        self.parameters = [value for group in self.groups for value in group.parameters]
        self.optimiser = optimiser_of(self.groups, self.settings.optimiser)
        self.schedule = schedule_of(self.optimiser, self.settings.steps, self.settings.optimiser)
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.scale = self.recipe.scale
        self.rate, self.norm = self.groups[0].rate, 0.0  # of the last step; the norm is of all gradients, before clipping
        self.average = None
        if self.settings.average:
            self.average = AveragedModel(self.recipe.learned, multi_avg_fn=get_ema_multi_avg_fn(self.settings.average))

    def advance(self) -> float:
        """One optimiser step on ``accumulate`` batches. When something is raised while gradients are made, nothing of it is kept.

        Batches whose loss is not finite, or whose gradients are not even without a scale, are left out. Raises
        FloatingPointError, saying what is not finite, after :data:`PATIENCE` of them in a row; the next attempt draws others.
        """
        self._stop_what_is_done()
        for _ in range(PATIENCE):
            try:
                total = self._gradients_in_range()
                break
            except NotFinite as error:
                reason = str(error)  # the error itself holds the graph of its loss
                self.skipped += 1
                log.warning("DreamMatcher: %s at step %d; this batch is left out", reason, self.step)
        else:
            self.stuck = True
            raise FloatingPointError(f"{reason} at step {self.step}, and so it was in {PATIENCE} batches one after the other; "
                                     f"{REMEDY}")
        self.rate = self.optimiser.param_groups[0]["lr"]
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.recipe.learned)
        self.step, self.steps_made = self.step + 1, self.steps_made + 1
        self.losses.append(total)
        return total

    def _stop_what_is_done(self) -> None:
        """From its share of the steps on, a group has no gradient any more: it stays as it is, and costs no backward pass."""
        for group in self.groups:
            if group.until < 1:
                learns = self.step < max(1, round(group.until * self.settings.steps))
                for value in group.parameters:
                    value.requires_grad_(learns)

    def _gradients_in_range(self) -> float:
        """Loss of the next batches, their gradients left on the parameters. Raises NotFinite."""
        before, scale = self.generator.get_state(), self.scale
        try:
            total = self._gradients()
            while not self._clipped():
                if self.scale <= 1:
                    raise NotFinite("a gradient holds NaN or infinity")
                self.scale /= 2  # too large for half precision: once more with less
                self.generator.set_state(before)
                self.optimiser.zero_grad(set_to_none=True)
                total = self._gradients()
        except NotFinite:
            self.scale = scale  # it was no matter of the scale
            self.generator.set_state(before)  # what was drawn may be another part in every process
            self.generator.manual_seed(int(torch.randint(2**62, (1,), generator=self.generator)))
            self.optimiser.zero_grad(set_to_none=True)
            raise
        except BaseException:
            self.generator.set_state(before)
            self.optimiser.zero_grad(set_to_none=True)
            raise
        return total

    def _gradients(self) -> float:
        """Loss of a step, its gradients left on the parameters. Raises NotFinite."""
        total = 0.0
        for _ in range(self.settings.accumulate):
            loss, reason = self._loss()
            mean_loss = self.share.mean(loss.detach().clone()).item()  # the same everywhere: all go on, or none
            if not math.isfinite(mean_loss):
                raise NotFinite(reason or f"the loss is {mean_loss}")
            (loss * self.scale).backward()
            total += mean_loss
        for value in self.parameters if self.share.processes > 1 else ():
            if value.requires_grad and value.grad is None:  # every process sends as many
                value.grad = torch.zeros_like(value)
        self.share.average([value.grad for value in self.parameters if value.grad is not None])
        return total

    def _loss(self) -> tuple[torch.Tensor, str]:
        """The loss of one batch, or NaN with the reason. Nothing is raised here, since other processes wait for the loss."""
        try:
            return self.recipe.loss(self.settings.batch, self.generator, self.share) / self.settings.accumulate, ""
        except NotFinite as error:
            return torch.full((), math.nan, device=self.parameters[0].device), str(error)

    def _clipped(self) -> bool:
        """Takes the scale out of the gradients and clips their norm. Returns True if they are finite."""
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        if self.scale != 1:
            torch._foreach_div_(gradients, self.scale)
        limit = self.settings.optimiser.clip or float("inf")
        self.norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        return math.isfinite(self.norm)

    def state(self) -> dict:
        return {"step": self.step, "losses": self.losses, "scale": self.scale, "learned": self.recipe.learned.state_dict(),
                "optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict(),
                "generator": self.generator.get_state(), "average": self.average and self.average.state_dict(),
                "skipped": self.skipped}

    def restore(self, state: dict) -> None:
        """Goes on from what :meth:`state` gave, at the rates of the recipe as it is now.

        Without ``optimiser``, ``generator`` or ``average`` in it these begin anew, at the state's step.
        """
        self.step, self.losses, self.scale = state["step"], state["losses"], state["scale"]
        self.skipped = state.get("skipped", 0)
        self.recipe.learned.load_state_dict(state["learned"])
        if "optimiser" in state:
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
        else:
            self.schedule.last_epoch = self.step
        self.schedule.base_lrs = [group.rate for group in self.groups]
        factor = rate_factor(self.step, self.settings.steps, self.settings.optimiser)
        for restored, group in zip(self.optimiser.param_groups, self.groups):
            restored["initial_lr"], restored["lr"] = group.rate, group.rate * factor
        if "generator" in state:
            self.generator.set_state(state["generator"])
        if self.average is not None and state.get("average"):
            self.average.load_state_dict(state["average"])
        elif self.average is not None:
            self.average.module.load_state_dict(state["learned"])

    @contextmanager
    def as_finished(self) -> Iterator[None]:
        """Inside, the recipe holds what :meth:`finish` would leave. Nothing is copied, and afterwards all is as it was."""
        averages = [] if self.average is None else list(self.average.module.parameters())
        pairs = list(zip(self.recipe.learned.parameters(), averages)) if averages else []

        def exchange() -> None:
            for own, average in pairs:
                own.data, average.data = average.data, own.data

        exchange()
        try:
            with self.as_drawn():
                yield
        finally:
            exchange()

    @contextmanager
    def as_drawn(self) -> Iterator[None]:
        """Inside, the recipe holds the weights that draw: those of a step, or what a schedule-free optimiser makes of them.

        Afterwards all is as it was, bit for bit.
        """
        if self.settings.optimiser.name != SCHEDULE_FREE:
            yield
            return
        stepping = [value.detach().clone() for value in self.parameters]
        self.optimiser.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.optimiser.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for value, kept in zip(self.parameters, stepping):
                    value.copy_(kept)

    def finish(self) -> None:
        """Leaves the averaged weights, if an average is kept or the optimiser makes one, as what was learned."""
        if self.settings.optimiser.name == SCHEDULE_FREE:
            self.optimiser.eval()  # type: ignore[attr-defined]
        if self.average is not None:
            self.recipe.learned.load_state_dict(self.average.module.state_dict())


def train(recipe: Recipe[FrozenModel], settings: TrainingSettings, checkpoint: Checkpoint | None = None,
          after_step: Callable[[Training], bool | None] = lambda training: None, share: Share = ALONE,
          begin: Callable[[Checkpoint], dict | None] = lambda checkpoint: states.read(checkpoint.path, checkpoint.job),
          warn: Callable[[str], None] = log.warning) -> Training:
    """Trains to the last step, from the state that ``begin`` finds if there is one, and leaves what was learned in the recipe.

    ``after_step`` may raise to stop, as the host's interrupt does: the state is written first. Or it returns True to be content
    with what is learned so far. Every process reads the state, the first one writes it. A state is a safety net: where it cannot
    be written, ``warn`` is told and the training goes on. Raises ValueError for a state of another training.
    """
    training = Training(recipe, settings, share=share)
    kept = begin(checkpoint) if checkpoint else None
    if kept is not None:
        training.restore(kept)
    _all_have_read(training)
    due = time.monotonic()

    def keep() -> None:
        nonlocal due
        due = time.monotonic()
        if checkpoint and share.first and (training.losses or training.skipped):
            write_state(checkpoint, training, warn)
            due = time.monotonic()

    try:
        while training.step < settings.steps:
            training.advance()
            if checkpoint and checkpoint.minutes and training.step < settings.steps and (
                    time.monotonic() - due >= 60 * checkpoint.minutes):
                keep()
            if after_step(training):
                break
    except BaseException:
        keep()
        raise
    if checkpoint and checkpoint.end and share.first:
        write_state(replace(checkpoint, path=checkpoint.end), training, warn)
    training.finish()
    return training


def _all_have_read(training: Training) -> None:
    """Waits for the other processes, so that the first one writes its next state when all have read the last one.

    Raises RuntimeError when they read different ones.
    """
    step = torch.full((), float(training.step), device=training.parameters[0].device)
    if training.share.mean(step.clone()).item() != training.step:
        raise RuntimeError(f"this process goes on after step {training.step} and another one after another step; delete the "
                           "state that the log names, and begin anew")


def write_state(checkpoint: Checkpoint, training: Training, warn: Callable[[str], None]) -> None:
    """Keeps where a training is. Where that fails, ``warn`` is told the file and its size, and nothing is raised."""
    state = training.state()
    try:
        states.write(checkpoint.path, state, checkpoint.job, checkpoint.kin, training.stuck, checkpoint.about)
    except (OSError, MemoryError, RuntimeError) as error:
        size = states.in_words(states.size_of(state))
        warn(f"the state of this training, {size} at step {training.step}, cannot be written to {checkpoint.path} ({error}). The "
             "training is not disturbed, but it cannot go on from here if it is stopped: make room on that disk, or let the "
             "output folder be written to")
