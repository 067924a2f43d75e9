"""The methods in the graph: from MODEL, CLIP, VAE and pictures to what was learned, and the loss of each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ...training.beginning import INPUT, begin, begin_words
from ...training.custom_diffusion import at_sizes, keys_and_values_of
from ...training.denoising import Penalty
from ...training.details import Uses
from ...training.export import TOWERS, Learned, lora_tensors
from ...training.metadata import Base, head
from ...training.new_words import initial_words
from ...training.recipe import SubjectRecipe
from ...training.sets import TrainingSet
from ...training.settings import ObjectiveSettings, TrainingOptions, TrainingSettings
from ...training.textual_inversion import token_rows
from ...training.trainables import TokenRows
from ..graph.notes import tell
from ..model.family import architecture_of, native_side
from ..text.towers import encoder_signature, towers_of
from .auto import sized
from .begin_from import Beginning, beginning_of
from .details import taught
from .dreambooth import LORA, DreamBoothSettings, names_of, recipe_of, uses_of
from .going_on import start_of
from .job_name import Name, Rate
from .keep import write_learned
from .kept import RUN, kept_steps
from .model import HostDenoiser
from .names import unet_names
from .plan import check_memory
from .run import Ready, check_class, check_pictures, check_prior, prompts_of, ready, run
from .schedule import check_attention_loss, check_text, check_unet, is_transformer

DEFAULT_OPTIONS = TrainingOptions()
#: the finer choices that the methods of a new word can honour
WORD_ALONE, KEYS_AND_WORD = Uses("Textual Inversion", wordless=False), Uses("Custom Diffusion")
SIZES = 16  # versions of each picture that Custom Diffusion learns from


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
               objective: ObjectiveSettings, settings: TrainingSettings, options: TrainingOptions = DEFAULT_OPTIONS,
               begin_from: Learned | None = None) -> tuple[Learned, list[float]]:
    """DreamBooth, from the weights of ``begin_from`` if they are given; a LoRA's layers beyond the usual ones learn too.

    Raises ValueError, before the first step, for a prior or masks that do not fit, and as :class:`HostDenoiser` and
    :func:`beginning_of`.
    """
    check_pictures(subject_set, options.details.one_picture)
    check_text(model, clip, chosen.text)
    prior = check_prior(subject_set, prior)
    check_masks(subject_set, objective)
    subject_set, prior = taught(options, uses_of(chosen), subject_set, prior)
    options = _on(model, options)
    subject_set, options = sized(model, subject_set, options)
    names, begun = names_of(model, clip), beginning_of(model, clip, begin_from)
    if begun is not None:
        begun.only("unet", *(["text"] if chosen.text else []))
    first = prompts_of(options) if reads_first(model, chosen.text, options) else None
    with ready(model, clip, vae, subject_set, prior, settings, options.running, prompts=first) as work:
        recipe = recipe_of(work, work.prior, names, chosen, objective, settings.seed, options.details, begun)
        job = work.job("DreamBooth", training_set=subject_set, prior_set=prior, chosen=chosen, objective=objective,
                       settings=settings, details=options.details, **_begun(begun))
        lora = chosen.lora if chosen.kind == LORA else None
        said = head(_base(work.denoiser), subject_set, prior, settings, chosen.rate, lora, options.details)

        def learned(losses: list[float]) -> Learned:
            parts = ((recipe.unet, names["unet"]), (recipe.text, names["text"]))
            lora = {name: value for part, known in parts if part is not None for name, value in lora_tensors(part, known).items()}
            return Learned(lora, about={**_about("DreamBooth " + chosen.kind, subject_set, settings, losses), **said})

        return _run(recipe, settings, job, options, work, subject_set, learned)


def plan_dreambooth(model, clip, vae, subject_set: TrainingSet, chosen: DreamBoothSettings, objective: ObjectiveSettings,
                    settings: TrainingSettings, options: TrainingOptions, before: int = 0) -> None:
    """Goes through everything that :func:`dreambooth` would refuse, its memory too, before class pictures are drawn for it.

    ``before`` counts the latents that go through the model for these pictures. Raises ValueError as that does.
    """
    check_pictures(subject_set, options.details.one_picture)
    check_class(subject_set)
    check_text(model, clip, chosen.text)
    check_masks(subject_set, objective)
    subject_set, _ = taught(options, uses_of(chosen), subject_set)
    options = _on(model, options)
    first = prompts_of(options) if reads_first(model, chosen.text, options) else None
    with ready(model, clip, vae, subject_set, None, settings, options.running, prompts=first) as work:
        recipe = recipe_of(work, work.subject_set, names_of(model, clip), chosen, objective, settings.seed, options.details)
        check_memory(recipe, settings, options.running, before=before, prompts=prompts_of(options))


def reads_first(model, text_learns: bool, options: TrainingOptions) -> bool:
    """True where all captions are known and none is read while a transformer learns: its text encoder may be larger than it."""
    return is_transformer(model) and not text_learns and not options.details.captions.shuffle


def _on(model, options: TrainingOptions) -> TrainingOptions:
    """``options`` with what the finer choices leave to the kind of network."""
    return replace(options, details=options.details.on(is_transformer(model)))


def check_masks(subject_set: TrainingSet, objective: ObjectiveSettings) -> None:
    """Raises ValueError when masks are to count and there are none; says so when they are not to count."""
    if objective.masked and not has_masks(subject_set):
        raise ValueError("masked: the training set has no masks; connect them there, or turn this off")
    if not objective.masked and has_masks(subject_set):
        tell("masked is off, so the parts outside of the masks are learned with the subject; transparent ones are grey. Turn it "
             "on to learn the subject alone")


def textual_inversion(model, clip, vae, subject_set: TrainingSet, initial_word: str, vectors: int, rate: float,
                      settings: TrainingSettings, options: TrainingOptions = DEFAULT_OPTIONS,
                      penalty: Penalty | None = None, begin_from: Learned | None = None) -> tuple[Learned, list[float]]:
    """The vectors of the identifier of each subject, from those of ``begin_from`` if they are given.

    Raises ValueError as :class:`HostDenoiser`, :func:`beginning_of` and :func:`initial_words`, and for text encoders other than
    CLIP.
    """
    words, objective = initial_words(initial_word, subject_set), options.objective(masked=has_masks(subject_set))
    check_attention_loss(model, penalty)
    towers_of(clip)
    check_pictures(subject_set, options.details.one_picture)
    subject_set, _ = taught(options, WORD_ALONE, subject_set)
    begun = beginning_of(model, clip, begin_from)
    if begun is not None:
        begun.only("words")
    subject_set, options = sized(model, subject_set, options)
    with ready(model, clip, vae, subject_set, None, settings, options.running) as work:
        with torch.inference_mode(False):
            _check_penalty(work.denoiser, penalty, vectors, subject_set)
            rows = _rows(work.denoiser, words, vectors, rate, begun)
            recipe = SubjectRecipe(work.denoiser, work.subject_set, objective, rows=rows, penalty=penalty)
        job = work.job("Textual Inversion", training_set=subject_set, initial_word=initial_word, vectors=vectors, rate=Rate(rate),
                       objective=objective, settings=settings, **_also(penalty), details=options.details, **_begun(begun))
        said = head(_base(work.denoiser), subject_set, None, settings, rate, None, options.details)

        def learned(losses: list[float]) -> Learned:
            about = {**_about("Textual Inversion", subject_set, settings, losses), **said, TOWERS: encoder_signature(clip)}
            return Learned({}, _plain(rows), about)

        return _run(recipe, settings, job, options, work, subject_set, learned)


def custom_diffusion(model, clip, vae, subject_set: TrainingSet, prior: TrainingSet | None, initial_word: str,
                     chosen: CustomDiffusionSettings, prior_weight: float, settings: TrainingSettings,
                     options: TrainingOptions = DEFAULT_OPTIONS, penalty: Penalty | None = None,
                     begin_from: Learned | None = None) -> tuple[Learned, list[float]]:
    """Keys and values that read the text, and the vector of the identifier of each subject, which are learned jointly (Kumari et
    al. 2023, Sec. 3.3). Raises ValueError as the other two do."""
    check_unet(model, "Custom Diffusion")
    words, begun = initial_words(initial_word, subject_set), beginning_of(model, clip, begin_from)
    if begun is not None:
        begun.only("unet", "words")
    check_pictures(subject_set, options.details.one_picture)
    prior = check_prior(subject_set, prior)
    subject_set, prior = taught(options, KEYS_AND_WORD, subject_set, prior)
    subject_set, options = sized(model, subject_set, options)
    shown, side = subject_set, subject_set.preparation.resolution
    with torch.inference_mode(False):
        if chosen.sizes:
            generator = torch.Generator().manual_seed(settings.seed)
            shown = subject_set.each(lambda one: replace(one, examples=tuple(
                version for example in one.examples for version in at_sizes(example, side, SIZES, generator))))
    with ready(model, clip, vae, shown, prior, settings, options.running, constant_start=True) as work:
        with torch.inference_mode(False):
            _check_penalty(work.denoiser, penalty, 1, subject_set)
            unet = keys_and_values_of(work.denoiser.unet, chosen.rate)
            rows = _rows(work.denoiser, words, 1, chosen.word_rate or chosen.rate, begun if begun and begun.words else None)
            if begun is not None:
                begin(unet, begun.unet)
            objective = options.objective(prior_weight, has_masks(shown))
            recipe = SubjectRecipe(work.denoiser, work.subject_set, objective, unet=unet, rows=rows, prior=work.prior,
                                   penalty=penalty)
        job = work.job("Custom Diffusion", training_set=subject_set, prior_set=prior, initial_word=initial_word, chosen=chosen,
                       objective=objective, settings=settings, **_also(penalty), details=options.details, **_begun(begun))
        said = head(_base(work.denoiser), subject_set, prior, settings, chosen.rate, None, options.details)

        def learned(losses: list[float]) -> Learned:
            about = {**_about("Custom Diffusion", subject_set, settings, losses), **said, TOWERS: encoder_signature(clip)}
            return Learned(lora_tensors(unet, unet_names(model.model)), _plain(rows), about)

        return _run(recipe, settings, job, options, work, subject_set, learned)


def _run(recipe: SubjectRecipe, settings: TrainingSettings, job: Name, options: TrainingOptions, work: Ready,
         subject_set: TrainingSet, learned: Callable[[list[float]], Learned]) -> tuple[Learned, list[float]]:
    """Trains, and gives what was ``learned``; files of steps that are kept and the result name their run."""
    def named(losses: list[float], run_name: str) -> Learned:
        result = learned(losses)
        return replace(result, about={**result.about, RUN: run_name})

    start = start_of(recipe, job, options, subject_set.words)
    kept = kept_steps(options, job, start.run, work.vae,
                      lambda losses, run_name, name, old: write_learned(named(losses, run_name), name, old))
    losses = run(recipe, settings, job, options, kept, start)
    return (learned(losses) if kept is None else named(losses, kept.run.name)), losses


def _rows(denoiser: HostDenoiser, words: Mapping[str, str], vectors: int, rate: float,
          begun: Beginning | None) -> dict[str, TokenRows]:
    """The vectors of each of ``words``, which begin as the word beside it, or as ``begun`` has them."""
    rows = {word: token_rows(denoiser.rows_of(initial), vectors, rate) for word, initial in words.items()}
    if begun is not None and (anew := begin_words(rows, begun.words)):
        tell(f"{INPUT}: it does not hold {', '.join(map(repr, anew))}, which begin from initial_word")
    return rows


def _check_penalty(denoiser: HostDenoiser, penalty: Penalty | None, vectors: int, subject_set: TrainingSet) -> None:
    """Raises ValueError where a learned prompt and the known one would not have their tokens in the same places, and for several
    subjects, whose classes differ."""
    if penalty is None:
        return
    if subject_set.parts:
        raise ValueError(f"attention_loss: it compares one word with its class, and the training set joins "
                         f"{len(subject_set.parts)} subjects; take it away, or connect one of the sets")
    if vectors != 1:
        raise ValueError(f"vectors: {vectors} do not go with attention_loss, which compares the word with one token; give 1")
    denoiser.row_of(penalty.class_word)


def _also(penalty: Penalty | None) -> dict[str, Penalty]:
    """The part that a further loss adds to the identity of a training."""
    return {} if penalty is None else {"attention_loss": penalty}


def _begun(begun: Beginning | None) -> dict[str, str]:
    """The part that a beginning adds to the identity of a training."""
    return {} if begun is None else {"begin_from": begun.digest}


def _plain(rows: dict[str, TokenRows]) -> dict[str, torch.Tensor]:
    return {word: one.rows.detach().cpu().clone() for word, one in rows.items()}


def has_masks(subject_set: TrainingSet) -> bool:
    """True if a picture of the set has a mask or transparent parts, which count as one."""
    return any(example.mask is not None for example in subject_set.examples)


def _base(denoiser: HostDenoiser) -> Base:
    model = denoiser.model
    return Base(*architecture_of(model), denoiser.prediction, native_side(model))


def _about(method: str, subject_set: TrainingSet, settings: TrainingSettings, losses: list[float]) -> dict[str, str]:
    identifiers = ", ".join(one.naming.identifier for one in subject_set.subjects)
    return {"method": method, "subject": subject_set.called(), "identifier": identifiers,
            "steps": str(len(losses)), "seed": str(settings.seed), "pictures": str(len(set(subject_set.examples)))}
