"""Training SeFi-IDE in the graph: from MODEL, CLIP, VAE and one picture to the vectors of a word."""

from __future__ import annotations

import re

import torch
from einops import rearrange

from ...sefi.attention_loss import AttentionLoss
from ...sefi.attention_loss import reference_prompt as with_known_word
from ...sefi.learned import SeFi
from ...sefi.recipe import NETWORK, SefiRecipe, SefiSettings
from ...sefi.stages import Producer, StageVectors, Table
from ...texts import alone, holds
from ...training.captions import Naming
from ...training.data import Example, Preparation
from ...training.details import Uses
from ...training.export import TOWERS
from ...training.sets import TrainingSet
from ...training.settings import TrainingOptions, TrainingSettings
from ..graph.pictures import rgb, subject_mask
from ..text.towers import encoder_signature
from ..training.details import taught
from ..training.going_on import start_of
from ..training.kept import kept_steps
from ..training.learn import has_masks
from ..training.run import ready, run
from ..training.schedule import check_unet
from .files import write_sefi


def one_picture(image: torch.Tensor, word: str, class_word: str, reference_prompt: str, resolution: int,
                flip: bool) -> TrainingSet:
    """The picture with its caption: the reference prompt with the word in the class's place.

    An alpha channel is a mask. Raises ValueError for several pictures, and for a prompt that does not hold the class word.
    """
    pictures = rgb("image", image)
    if len(pictures) > 1:
        raise ValueError(f"image: it holds {len(pictures)} pictures and SeFi-IDE learns from one; choose one, or use "
                         "DreamBooth (DreamMatcher)")
    word, class_word = word.strip(), class_word.strip()
    if not word:
        raise ValueError("identifier: it is empty, so there is no word to learn; write one")
    if not class_word or not holds(reference_prompt, class_word):
        raise ValueError(f"reference_prompt: {reference_prompt!r} does not hold the class word {class_word!r}; write it where "
                         "the subject's word is to stand, as in: a photo of a toy")
    caption = re.sub(alone(class_word), lambda _: word, reference_prompt.strip())
    mask = subject_mask("image", image)
    example = Example(rearrange(pictures[0], "h w c -> c h w").float().cpu().clone(), (caption,),
                      None if mask is None else mask[:1].float().cpu().clone())
    return TrainingSet((example,), Naming(word, class_word), Preparation(resolution, min(64, resolution), True, flip))


def train_sefi(model, clip, vae, subject_set: TrainingSet, chosen: SefiSettings, attention: AttentionLoss | None,
               settings: TrainingSettings, options: TrainingOptions) -> tuple[SeFi, list[float]]:
    """The vectors of the set's identifier.

    Raises ValueError as :class:`HostDenoiser`, for other text encoders than CLIP's, and for a class word of several tokens: its
    prompt would be longer than the word's, and their tokens could not be compared one by one.
    """
    check_unet(model, "SeFi-IDE")
    word, class_word = subject_set.naming.identifier, subject_set.naming.class_word
    subject_set, _ = taught(options, Uses("SeFi-IDE", wordless=False), subject_set)
    with ready(model, clip, vae, subject_set, None, settings, options.running) as work:
        with torch.inference_mode(False):
            vectors = _begun(work.denoiser.row_of(class_word), chosen, settings.seed)
            masked = has_masks(subject_set)
            objective = options.objective(masked=masked)
            attention = attention if attention is not None and attention.weight else None
            recipe = SefiRecipe(work.denoiser, work.subject_set, word, vectors, objective, attention)
        job = work.job("SeFi-IDE", training_set=subject_set, chosen=chosen, attention_loss=attention, objective=objective,
                       settings=settings, details=options.details)

        def learned(losses: list[float]) -> SeFi:
            with torch.no_grad():
                keys, values = (part.detach().float().cpu().clone() for part in vectors.table())
            about = {"word": word, "init_word": class_word,
                     "class_prompt": with_known_word(subject_set.examples[0].captions[0], word, class_word),
                     "stages": str(chosen.stages), "lambda": str(attention.weight if attention else 0.0),
                     "steps": str(len(losses)), "seed": str(settings.seed), TOWERS: encoder_signature(clip)}
            return SeFi(keys, values, about)

        start = start_of(recipe, job, options, subject_set.words)
        kept = kept_steps(options, job, start.run, work.vae,
                          lambda losses, _, name, old: write_sefi(learned(losses), name, old))
        losses = run(recipe, settings, job, options, kept, start)
        return learned(losses), losses


def _begun(initial: torch.Tensor, chosen: SefiSettings, seed: int) -> StageVectors:
    if chosen.kind == NETWORK:
        return Producer(initial, chosen.stages, chosen.split, chosen.rate, torch.Generator().manual_seed(seed))
    return Table(initial, chosen.stages, chosen.split, chosen.rate)
