"""A training in the graph: from MODEL, CLIP, VAE and pictures to what was learned."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from einops import rearrange

from ...training.custom_diffusion import at_sizes, keys_and_values_of
from ...training.data import Encode, LatentSet
from ...training.dreambooth import TEXT_KEPT, TEXT_TARGETS, UNET_TARGETS, full_of, lora_of
from ...training.export import Learned, lora_tensors
from ...training.loop import Checkpoint, Training, train
from ...training.recipe import SubjectRecipe
from ...training.sets import TrainingSet
from ...training.settings import LoraSettings, ObjectiveSettings, TrainingSettings
from ...training.textual_inversion import token_rows
from ...training.trainables import Trainable
from .model import HostDenoiser
from .names import text_names, unet_names

log = logging.getLogger(__name__)

LORA, FULL = "LoRA", "full"
SIZES = 16  # versions of each picture that Custom Diffusion learns from
NO_CLASS = ("class_word: it is empty in the training set, and prior preservation needs the subject's class; write it there, or "
            "take the prior set away")
#: folder of the states of runs that were stopped, in the host's output folder
STATES = "dreammatcher/training"


@dataclass(frozen=True)
class DreamBoothSettings:
    """What DreamBooth trains, and how fast."""

    kind: str = LORA
    lora: LoraSettings = LoraSettings()
    rate: float = 1e-4
    text: bool = False  # the text encoder too, at the same rate

    def __post_init__(self) -> None:
        if self.kind not in (LORA, FULL):
            raise ValueError(f"kind: {self.kind!r} is neither {LORA!r} nor {FULL!r}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} is outside 0..1; 0.0001 suits a LoRA, 0.000005 a full training")


def dreambooth(model, clip, vae, own: TrainingSet, prior: TrainingSet | None, chosen: DreamBoothSettings,
               objective: ObjectiveSettings, settings: TrainingSettings) -> tuple[Learned, list[float]]:
    """What DreamBooth learned, and the loss of each step. Raises ValueError for a prior without a class word, and as
    :class:`HostDenoiser` does."""
    if prior is not None and not own.naming.class_word:
        raise ValueError(NO_CLASS)
    denoiser, encode = _opened(model, clip, vae, own)
    generator = torch.Generator().manual_seed(settings.seed)
    names = {"unet": unet_names(model.model), "text": text_names(clip.cond_stage_model)}

    def differences(part: str, targets: tuple[str, ...], kept: tuple[str, ...]) -> Trainable:
        weights = getattr(denoiser, part)
        if chosen.kind == LORA:
            return lora_of(weights, targets, chosen.lora, chosen.rate, generator)
        named = {name: value for name, value in weights.items() if _stem(name) in names[part]}
        return full_of(named, chosen.rate, kept)

    with torch.inference_mode(False):
        unet = differences("unet", UNET_TARGETS, ())
        text = differences("text", TEXT_TARGETS, TEXT_KEPT) if chosen.text else None
        recipe = SubjectRecipe(denoiser, _latents(own, encode), objective, unet=unet, text=text,
                               prior=None if prior is None else _latents(prior.same_way(own.preparation), encode))
    job = _job(model, own, prior, chosen, objective, settings)
    losses = _run(recipe, settings, job)
    lora = lora_tensors(unet, names["unet"]) | ({} if text is None else lora_tensors(text, names["text"]))
    return Learned(lora, about=_about("DreamBooth " + chosen.kind, own, settings)), losses


def textual_inversion(model, clip, vae, own: TrainingSet, initial_word: str, vectors: int, rate: float,
                      settings: TrainingSettings) -> tuple[Learned, list[float]]:
    """The vectors of the set's identifier, and the loss of each step. Raises ValueError as :class:`HostDenoiser` does, and for
    models with two text encoders."""
    word = _word(own)
    denoiser, encode = _opened(model, clip, vae, own)
    with torch.inference_mode(False):
        rows = {word: token_rows(denoiser.rows_of(initial_word), vectors, rate)}
        recipe = SubjectRecipe(denoiser, _latents(own, encode), ObjectiveSettings(masked=_masked(own)), rows=rows)
    losses = _run(recipe, settings, _job(model, own, initial_word, vectors, rate, settings))
    return Learned({}, {word: rows[word].rows.detach().clone()}, _about("Textual Inversion", own, settings)), losses


def custom_diffusion(model, clip, vae, own: TrainingSet, prior: TrainingSet | None, initial_word: str, rate: float, sizes: bool,
                     prior_weight: float, settings: TrainingSettings) -> tuple[Learned, list[float]]:
    """Keys and values that read the text, the vector of the set's identifier, and the loss of each step.

    With ``sizes`` every picture is learned at several sizes, said in its captions. Raises ValueError as the other two do.
    """
    word = _word(own)
    if prior is not None and not own.naming.class_word:
        raise ValueError(NO_CLASS)
    denoiser, encode = _opened(model, clip, vae, own, constant_start=True)
    shown = own
    with torch.inference_mode(False):
        if sizes:
            generator = torch.Generator().manual_seed(settings.seed)
            side = own.preparation.resolution
            shown = replace(own, examples=tuple(version for example in own.examples
                                                for version in at_sizes(example, side, SIZES, generator)))
        unet = keys_and_values_of(denoiser.unet, rate)
        rows = {word: token_rows(denoiser.rows_of(initial_word), 1, rate)}
        objective = ObjectiveSettings(prior_weight, masked=sizes or _masked(own))
        recipe = SubjectRecipe(denoiser, _latents(shown, encode), objective, unet=unet, rows=rows,
                               prior=None if prior is None else _latents(prior.same_way(own.preparation), encode))
    losses = _run(recipe, settings, _job(model, own, prior, initial_word, rate, sizes, prior_weight, settings))
    return Learned(lora_tensors(unet, unet_names(model.model)), {word: rows[word].rows.detach().clone()},
                   _about("Custom Diffusion", own, settings)), losses


def _word(own: TrainingSet) -> str:
    if not own.naming.identifier:
        raise ValueError("identifier: it is empty in the training set, so there is no word to learn; write one there")
    return own.naming.identifier


def _stem(name: str) -> str:
    return name.rpartition(".")[0] + ".weight"


def _masked(own: TrainingSet) -> bool:
    return any(example.mask is not None for example in own.examples)


def _opened(model, clip, vae, own: TrainingSet, constant_start: bool = False) -> tuple[HostDenoiser, Encode]:
    size = own.preparation.resolution // 8

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            latents = vae.encode(rearrange(pictures, "b c h w -> b h w c"))
            latents = model.model.process_latent_in(latents.float().cpu())
        return latents.clone()

    return HostDenoiser(model, clip, (size, size), constant_start), encode


def _latents(own: TrainingSet, encode: Encode) -> LatentSet:
    """Latents of a set, made before the model is trained, and as ordinary tensors."""
    with torch.inference_mode(False):
        return own.prepared(encode)


def _job(model, *choices: object) -> str:
    """Names a training: the same pictures, settings and weights go on where they stopped."""
    said = [choice.fingerprint() if isinstance(choice, TrainingSet) else
            asdict(choice) if hasattr(choice, "__dataclass_fields__") else choice for choice in (*choices, _identity(model))]
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()


def _identity(model) -> str:
    """Of the weights that are seen, the same after a restart of the host."""
    from ..unkeyed import weights_identity

    return str(weights_identity(model.model.diffusion_model)[0])


def _run(recipe: SubjectRecipe, settings: TrainingSettings, job: str) -> list[float]:
    """Trains with the host's progress bar and interrupt; a stopped run goes on from its last step when it is queued again."""
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

    with torch.inference_mode(False), torch.enable_grad(), _autocast(recipe, settings):
        losses = train(recipe, settings, Checkpoint(path, job), after_step).losses
    path.unlink(missing_ok=True)  # of use to a stopped run only
    return losses


def _autocast(recipe: SubjectRecipe, settings: TrainingSettings) -> torch.autocast:
    return torch.autocast(recipe.model.device.type, torch.bfloat16, enabled=settings.bfloat16)


def _about(method: str, own: TrainingSet, settings: TrainingSettings) -> dict[str, str]:
    return {"method": method, "subject": own.naming.subject, "identifier": own.naming.identifier, "steps": str(settings.steps),
            "seed": str(settings.seed), "pictures": str(len(own.examples))}
