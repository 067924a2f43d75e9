"""The methods in the graph: from MODEL, CLIP, VAE and pictures to what was learned, and the loss of each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ...training.custom_diffusion import at_sizes, keys_and_values_of
from ...training.data import LatentSet
from ...training.denoising import Penalty
from ...training.details import Details, Uses
from ...training.dreambooth import TEXT_KEPT, full_of, lora_of, text_targets, unet_targets
from ...training.export import TOWERS, Learned, lora_tensors
from ...training.recipe import SubjectRecipe
from ...training.sets import TrainingSet
from ...training.settings import LoraSettings, ObjectiveSettings, TrainingOptions, TrainingSettings
from ...training.textual_inversion import token_rows
from ...training.trainables import TokenRows, Trainable
from ...weights import Weights
from ..graph.notes import tell
from ..text.towers import encoder_signature
from .auto import sized
from .details import named as named_by
from .details import taught
from .keep import write_learned
from .kept import RUN, kept_steps
from .model import HostDenoiser
from .names import text_names, unet_names
from .plan import check_memory
from .run import Name, Rate, Ready, check_class, check_pictures, check_prior, job_of, prompts_of, ready, run

LORA, FULL = "LoRA", "full"
DEFAULT_OPTIONS = TrainingOptions()
#: the finer choices that the methods of a new word can honour
WORD_ALONE, KEYS_AND_WORD = Uses("Textual Inversion", wordless=False), Uses("Custom Diffusion")
SIZES = 16  # versions of each picture that Custom Diffusion learns from


@dataclass(frozen=True)
class DreamBoothSettings:
    """Settings of DreamBooth: the weights that learn, and their rate."""

    kind: str = LORA
    lora: LoraSettings = LoraSettings()
    rate: float = 1e-4
    text: bool = False  # the text encoder too, at the same rate

    def __post_init__(self) -> None:
        if self.kind not in (LORA, FULL):
            raise ValueError(f"kind: {self.kind!r} is neither {LORA!r} nor {FULL!r}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} is outside 0..1; 0.0001 suits a LoRA, 0.000005 a full training")


@dataclass(frozen=True)
class CustomDiffusionSettings:
    """Settings of Custom Diffusion: the pictures it learns from, and its rates."""

    rate: float = 4e-5  # of keys and values: the authors' 1e-5 times a batch of 2, and twice with a prior (scale_lr)
    word_rate: float = 0.0  # of the word's vector; 0 is the same as keys and values have, as in the authors' code
    sizes: bool = True  # every picture is learned at several sizes, said in its captions

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} is outside 0..1; the authors' is 0.00001 for each picture of a step, and twice "
                             "that with a prior: 0.00004 for 2")
        if not 0 <= self.word_rate <= 1:
            raise ValueError(f"word_rate: {self.word_rate} is outside 0..1; 0 is the same as rate")


def dreambooth(model, clip, vae, subject_set: TrainingSet, prior: TrainingSet | None, chosen: DreamBoothSettings,
               objective: ObjectiveSettings, settings: TrainingSettings,
               options: TrainingOptions = DEFAULT_OPTIONS) -> tuple[Learned, list[float]]:
    """DreamBooth. Raises ValueError, before the first step, for a prior or masks that do not fit, and as :class:`HostDenoiser`.
    """
    check_pictures(subject_set, options.details.one_picture)
    prior = check_prior(subject_set, prior)
    check_masks(subject_set, objective)
    subject_set, prior = taught(options, uses_of(chosen), subject_set, prior)
    subject_set, options = sized(model, subject_set, options)
    names = _names(model, clip)
    with ready(model, clip, vae, subject_set, prior, settings, options.running) as work:
        recipe = _dreambooth_recipe(work, work.prior, names, chosen, objective, settings.seed, options.details)
        job = job_of(work.identity, "DreamBooth", subject_set, prior, chosen, objective, settings, *named_by(options))

        def learned(losses: list[float]) -> Learned:
            parts = ((recipe.unet, names["unet"]), (recipe.text, names["text"]))
            lora = {name: value for part, known in parts if part is not None for name, value in lora_tensors(part, known).items()}
            return Learned(lora, about=_about("DreamBooth " + chosen.kind, subject_set, settings, losses))

        return _run(recipe, settings, job, options, work, subject_set, learned)


def plan_dreambooth(model, clip, vae, subject_set: TrainingSet, chosen: DreamBoothSettings, objective: ObjectiveSettings,
                    settings: TrainingSettings, options: TrainingOptions, before: int = 0) -> None:
    """Goes through everything that :func:`dreambooth` would refuse, its memory too, before class pictures are drawn for it.

    ``before`` counts the latents that go through the model for these pictures. Raises ValueError as that does.
    """
    check_pictures(subject_set, options.details.one_picture)
    check_class(subject_set)
    check_masks(subject_set, objective)
    subject_set, _ = taught(options, uses_of(chosen), subject_set)
    with ready(model, clip, vae, subject_set, None, settings, options.running) as work:
        recipe = _dreambooth_recipe(work, work.subject_set, _names(model, clip), chosen, objective, settings.seed,
                                    options.details)
        check_memory(recipe, settings, options.running, before=before, prompts=prompts_of(options))


def _names(model, clip) -> dict[str, dict[str, str]]:
    return {"unet": unet_names(model.model), "text": text_names(clip.cond_stage_model)}


def uses_of(chosen: DreamBoothSettings) -> Uses:
    """The finer choices that DreamBooth can honour with these settings."""
    return Uses(f"DreamBooth ({chosen.kind})", lora=chosen.kind == LORA, text=chosen.text)


def _dreambooth_recipe(work: Ready, prior: LatentSet | None, names: dict[str, dict[str, str]], chosen: DreamBoothSettings,
                       objective: ObjectiveSettings, seed: int, details: Details) -> SubjectRecipe:
    generator = torch.Generator().manual_seed(seed)

    def differences(weights: Weights, part: str, rate: float, targets: tuple[str, ...], kept: tuple[str, ...]) -> Trainable:
        if chosen.kind == LORA:
            return lora_of(weights, targets, chosen.lora, rate, generator, details.rank_dropout)
        return full_of({name: value for name, value in weights.items() if _stem(name) in names[part]}, rate, kept)

    with torch.inference_mode(False):
        frozen, text = work.denoiser, None
        unet = differences(frozen.unet, "unet", chosen.rate, unet_targets(frozen.unet, details.layers), ())
        if chosen.text:
            rate = details.text.rate or chosen.rate
            text = differences(frozen.text, "text", rate, text_targets(details.layers), TEXT_KEPT)
            text.until = details.text.until
        return SubjectRecipe(work.denoiser, work.subject_set, objective, unet=unet, text=text, prior=prior)


def check_masks(subject_set: TrainingSet, objective: ObjectiveSettings) -> None:
    """Raises ValueError when masks are to count and there are none; says so when they are not to count."""
    if objective.masked and not has_masks(subject_set):
        raise ValueError("masked: the training set has no masks; connect them there, or turn this off")
    if not objective.masked and has_masks(subject_set):
        tell("masked is off, so the parts outside of the masks are learned with the subject; transparent ones are grey. Turn it "
             "on to learn the subject alone")


def textual_inversion(model, clip, vae, subject_set: TrainingSet, initial_word: str, vectors: int, rate: float,
                      settings: TrainingSettings, options: TrainingOptions = DEFAULT_OPTIONS,
                      penalty: Penalty | None = None) -> tuple[Learned, list[float]]:
    """The vectors of the set's identifier. Raises ValueError as :class:`HostDenoiser` and for text encoders other than CLIP."""
    word, objective = word_of(subject_set), options.objective(masked=has_masks(subject_set))
    check_pictures(subject_set, options.details.one_picture)
    subject_set, _ = taught(options, WORD_ALONE, subject_set)
    subject_set, options = sized(model, subject_set, options)
    with ready(model, clip, vae, subject_set, None, settings, options.running) as work:
        with torch.inference_mode(False):
            _check_penalty(work.denoiser, penalty, vectors)
            rows = {word: token_rows(work.denoiser.rows_of(initial_word), vectors, rate)}
            recipe = SubjectRecipe(work.denoiser, work.subject_set, objective, rows=rows, penalty=penalty)
        choices = (subject_set, initial_word, vectors, Rate(rate), objective, settings, *_also(penalty), *named_by(options))
        job = job_of(work.identity, "Textual Inversion", *choices)

        def learned(losses: list[float]) -> Learned:
            about = {**_about("Textual Inversion", subject_set, settings, losses), TOWERS: encoder_signature(clip)}
            return Learned({}, _plain(rows), about)

        return _run(recipe, settings, job, options, work, subject_set, learned)


def custom_diffusion(model, clip, vae, subject_set: TrainingSet, prior: TrainingSet | None, initial_word: str,
                     chosen: CustomDiffusionSettings, prior_weight: float, settings: TrainingSettings,
                     options: TrainingOptions = DEFAULT_OPTIONS, penalty: Penalty | None = None) -> tuple[Learned, list[float]]:
    """Keys and values that read the text, and the vector of the set's identifier. Raises ValueError as the other two do."""
    word = word_of(subject_set)
    check_pictures(subject_set, options.details.one_picture)
    prior = check_prior(subject_set, prior)
    subject_set, prior = taught(options, KEYS_AND_WORD, subject_set, prior)
    subject_set, options = sized(model, subject_set, options)
    shown, side = subject_set, subject_set.preparation.resolution
    with torch.inference_mode(False):
        if chosen.sizes:
            generator = torch.Generator().manual_seed(settings.seed)
            shown = replace(subject_set, examples=tuple(version for example in subject_set.examples
                                                        for version in at_sizes(example, side, SIZES, generator)))
    with ready(model, clip, vae, shown, prior, settings, options.running, constant_start=True) as work:
        with torch.inference_mode(False):
            _check_penalty(work.denoiser, penalty, 1)
            unet = keys_and_values_of(work.denoiser.unet, chosen.rate)
            rows = {word: token_rows(work.denoiser.rows_of(initial_word), 1, chosen.word_rate or chosen.rate)}
            objective = options.objective(prior_weight, has_masks(shown))
            recipe = SubjectRecipe(work.denoiser, work.subject_set, objective, unet=unet, rows=rows, prior=work.prior,
                                   penalty=penalty)
        choices = (subject_set, prior, initial_word, chosen, objective, settings, *_also(penalty), *named_by(options))
        job = job_of(work.identity, "Custom Diffusion", *choices)

        def learned(losses: list[float]) -> Learned:
            about = {**_about("Custom Diffusion", subject_set, settings, losses), TOWERS: encoder_signature(clip)}
            return Learned(lora_tensors(unet, unet_names(model.model)), _plain(rows), about)

        return _run(recipe, settings, job, options, work, subject_set, learned)


def _run(recipe: SubjectRecipe, settings: TrainingSettings, job: Name, options: TrainingOptions, work: Ready,
         subject_set: TrainingSet, learned: Callable[[list[float]], Learned]) -> tuple[Learned, list[float]]:
    """Trains, and gives what was ``learned``; files of steps that are kept and the result name their run."""
    def named(losses: list[float], run_name: str) -> Learned:
        result = learned(losses)
        return replace(result, about={**result.about, RUN: run_name})

    kept = kept_steps(options, job.job, subject_set, work.vae,
                      lambda losses, run_name, name, old: write_learned(named(losses, run_name), name, old))
    losses = run(recipe, settings, job, options, kept)
    return (learned(losses) if kept is None else named(losses, kept.run.name)), losses


def _check_penalty(denoiser: HostDenoiser, penalty: Penalty | None, vectors: int) -> None:
    """Raises ValueError where a learned prompt and the known one would not have their tokens in the same places."""
    if penalty is None:
        return
    if vectors != 1:
        raise ValueError(f"vectors: {vectors} do not go with attention_loss, which compares the word with one token; give 1")
    denoiser.row_of(penalty.class_word)


def _also(penalty: Penalty | None) -> tuple[Penalty, ...]:
    """The part that a further loss adds to the identity of a training."""
    return () if penalty is None else (penalty,)


def _plain(rows: dict[str, TokenRows]) -> dict[str, torch.Tensor]:
    return {word: one.rows.detach().cpu().clone() for word, one in rows.items()}


def word_of(subject_set: TrainingSet) -> str:
    """The word that is learned. Raises ValueError for a set without an identifier."""
    if not subject_set.naming.identifier:
        raise ValueError("identifier: it is empty in the training set, so there is no word to learn; write one there")
    return subject_set.naming.identifier


def _stem(name: str) -> str:
    return name.rpartition(".")[0] + ".weight"


def has_masks(subject_set: TrainingSet) -> bool:
    """True if a picture of the set has a mask or transparent parts, which count as one."""
    return any(example.mask is not None for example in subject_set.examples)


def _about(method: str, subject_set: TrainingSet, settings: TrainingSettings, losses: list[float]) -> dict[str, str]:
    return {"method": method, "subject": subject_set.called(), "identifier": subject_set.naming.identifier,
            "steps": str(len(losses)), "seed": str(settings.seed), "pictures": str(len(set(subject_set.examples)))}
