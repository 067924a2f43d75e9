"""The picture on a node while it trains: the loss so far, the time that is left, and what the model draws by now."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from einops import rearrange
from PIL import Image

from ...devices import OutOfMemory
from ...training.curve import curve, time_left
from ...training.loop import Training
from ...training.recipe import Recipe
from ...training.samples import sample
from ...training.settings import TrainingOptions
from ..graph.pictures import rough_rgb
from .model import HostLearner

log = logging.getLogger(__name__)

#: seconds between two pictures of the loss alone
EVERY = 5.0
#: of a run that says nothing of samples: how many there are at most, and the share of its time that they and the curve may take
SAMPLES, SHARE = 10, 0.05


class Shown:
    """The preview of one training on its node.

    With ``sample_every`` a sample is drawn every so many steps, with 0 none. Without a choice (None) the first is drawn after a
    tenth of the steps, and others while they take no more than :data:`SHARE` of the time. Between samples the curve goes on.
    Nothing of it changes what is learned.
    """

    def __init__(self, recipe: Recipe[HostLearner], options: TrainingOptions):
        self.recipe, self.every = recipe, options.sample_every
        #: of the samples: that of the options, or one for each subject
        self.prompts: tuple[str, ...] = (options.sample_prompt,) if options.sample_prompt else ()
        if options.sample_every is None and not self.prompts:
            self.prompts = plain_prompts(recipe)
        self.pictures: list[Image.Image] = []  # the last samples
        self.begun = self.last = time.monotonic()
        self.spent = 0.0  # seconds, on what is shown

    def seconds_left(self, training: Training) -> float:
        return (time.monotonic() - self.begun) / max(1, training.steps_made) * (training.settings.steps - training.step)

    def after_step(self, training: Training) -> tuple[str, Image.Image, int] | None:
        """A preview in the host's form, or None where there is nothing new to show."""
        now = time.monotonic()
        due, affordable = self._due(training.step, training.settings.steps), self._affordable(now)
        if not due and not (affordable and now - self.last >= EVERY):
            return None
        if due and self.prompts:
            self._draw(training)
        page = beside(curve(training.losses, training.settings.steps, time_left(self.seconds_left(training))), self.pictures)
        self.last = time.monotonic()
        self.spent += self.last - now
        return "JPEG", page, page.width

    def _due(self, step: int, steps: int) -> bool:
        if self.every is not None:
            return self.every > 0 and step % self.every == 0
        first = not self.pictures
        return step % max(1, steps // SAMPLES) == 0 and bool(self.prompts) and (first or self._affordable(time.monotonic()))

    def _affordable(self, now: float) -> bool:
        return self.spent <= SHARE * (now - self.begun)

    def _draw(self, training: Training) -> None:
        try:
            with training.as_drawn():
                self.pictures = [rough(self.recipe, drawn(self.recipe, prompt, training.settings.seed))
                                 for prompt in self.prompts]
        except OutOfMemory:
            if self.every is not None:
                raise
            log.warning("DreamMatcher: memory does not suffice for a sample while it trains; the node shows the loss alone")
            self.prompts = ()


def plain_prompts(recipe: Recipe[HostLearner]) -> tuple[str, ...]:
    """The shortest caption of each subject that it is learned from, as "a photo of a sks dog"."""
    learned = recipe.subject_set
    captions: dict[int, list[str]] = {}
    for example, owner in zip(learned.examples, learned.owners or [0] * len(learned.examples)):
        captions.setdefault(owner, []).extend(example.captions)
    return tuple(min(texts, key=len) for texts in captions.values())


def drawn(recipe: Recipe[HostLearner], prompt: str, seed: int) -> torch.Tensor:
    """Latents [1, C, h, w] of a prompt at the size of the first picture that is learned from."""
    channels, height, width = recipe.subject_set.examples[0].latents.shape[1:]
    return sample(recipe, prompt, (channels, height, width), seed)


def rough(recipe: Recipe[HostLearner], latents: torch.Tensor) -> Image.Image:
    """The first of ``latents`` [B, C, h, w] without the autoencoder, a pixel for each cell."""
    colours = rough_rgb(latents[0].float().cpu(), recipe.model.denoiser.model.model.latent_format)
    return Image.fromarray(rearrange(colours * 255, "c h w -> h w c").byte().numpy())


def beside(page: Image.Image, pictures: Sequence[Image.Image]) -> Image.Image:
    """``page`` with square pictures of its height at its right."""
    if not pictures:
        return page
    both = Image.new("RGB", (page.width + len(pictures) * page.height, page.height))
    both.paste(page)
    for number, picture in enumerate(pictures):
        square = picture.resize((page.height, page.height), Image.Resampling.BICUBIC)
        both.paste(square, (page.width + number * page.height, 0))
    return both
