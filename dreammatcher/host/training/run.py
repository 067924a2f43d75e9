"""One training on the host: what it works on, how it is named, and the loop with the host's progress bar and interrupt."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from einops import rearrange

from ...training.data import LatentSet
from ...training.loop import Checkpoint, Training, train
from ...training.recipe import SubjectRecipe
from ...training.sets import TrainingSet
from ...training.settings import TrainingSettings
from ..unkeyed import weights_identity
from .model import HostDenoiser

log = logging.getLogger(__name__)

#: folder of the states of runs that were stopped, in the host's output folder
STATES = "dreammatcher/training"


@dataclass(frozen=True, eq=False)
class Ready:
    """Pictures as latents, and the model that learns from them."""

    denoiser: HostDenoiser
    own: LatentSet
    prior: LatentSet | None
    identity: str  # of weights and latents, the same after a restart of the host


def check_prior(own: TrainingSet, prior: TrainingSet | None) -> None:
    """Raises ValueError for a prior without a class, and for one whose captions name the subject."""
    if prior is None:
        return
    if not own.naming.class_word:
        raise ValueError("class_word: it is empty in the training set, and prior preservation needs the subject's class; write "
                         "it there, or take the prior set away")
    word = own.naming.identifier
    named = next((text for example in prior.examples for text in example.captions if word and word in text.split()), None)
    if named is not None:
        raise ValueError(f"prior_set: its caption {named!r} holds the identifier {word!r}, so pictures of the class would be "
                         "learned as the subject; leave the identifier of the prior's Training Set empty")


def ready(model, clip, vae, own: TrainingSet, prior: TrainingSet | None, seed: int, constant_start: bool = False) -> Ready:
    """Encodes the pictures first, since that may move other models, then loads the model. Raises as :class:`HostDenoiser`."""
    def encode(pictures: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.random.fork_rng():  # older hosts draw from the encoder's distribution
            torch.manual_seed(seed)
            latents = vae.encode(rearrange(pictures, "b c h w -> b h w c"))
            latents = model.model.process_latent_in(latents.float().cpu())
        return latents.clone()

    with torch.inference_mode(False):
        sets = [None if each is None else each.same_way(own.preparation).prepared(encode) for each in (own, prior)]
    side = own.preparation.resolution // 8
    denoiser = HostDenoiser(model, clip, (side, side), constant_start)
    towers = [weights_identity(module)[0] for module in (model.model.diffusion_model, clip.cond_stage_model)]
    sums = [float(example.latents.double().sum()) for each in sets if each for example in each.examples]
    return Ready(denoiser, *sets, json.dumps([*towers, sums]))


def job_of(identity: str, *choices: object) -> str:
    """Names a training: the same pictures, settings and weights go on where they stopped."""
    said = [choice.fingerprint() if isinstance(choice, TrainingSet) else
            asdict(choice) if hasattr(choice, "__dataclass_fields__") else choice for choice in (*choices, identity)]
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()


def run(recipe: SubjectRecipe, settings: TrainingSettings, job: str) -> list[float]:
    """The loss of each step. A stopped run goes on from its last step when it is queued again."""
    path = Path(folder_paths.get_output_directory()) / STATES / f"{job[:32]}.safetensors"
    bar, begun = comfy.utils.ProgressBar(settings.steps), time.monotonic()
    size = sum(value.numel() for value in recipe.learned.parameters())
    log.info("DreamMatcher: training of %d numbers for %d steps", size, settings.steps)

    def after_step(training: Training) -> None:
        bar.update_absolute(training.step, settings.steps)
        if training.step in (10, 100) or training.step % 500 == 0:
            left = (time.monotonic() - begun) / training.made * (settings.steps - training.step)
            log.info("DreamMatcher: step %d of %d, about %.0f s left", training.step, settings.steps, left)
        comfy.model_management.throw_exception_if_processing_interrupted()

    # without its cache: that would keep the first step's cast of every weight that learns
    autocast = torch.autocast(recipe.model.device.type, torch.bfloat16, enabled=settings.bfloat16, cache_enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), autocast:
        recipe.learned.to(recipe.model.device)
        losses = train(recipe, settings, Checkpoint(path, job), after_step).losses
    path.unlink(missing_ok=True)  # of use to a stopped run only
    return losses
