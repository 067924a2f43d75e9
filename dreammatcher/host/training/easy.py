"""Learning a subject with what most people choose: photos and a class word in, a model that knows the subject out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ...texts import alone, holds
from ...training.data import Preparation
from ...training.export import Learned
from ...training.job import DREAMBOOTH_LORA
from ...training.settings import Keeping, LoraSettings, ObjectiveSettings, OptimiserSettings, Running, TrainingOptions
from ..graph.masks import Masks
from ..graph.pictures import Images
from ..model.arguments import told_guidance
from ..model.family import native_side
from ..text.identifiers import rare_word
from .auto import numbers_for
from .dreambooth import LORA, DreamBoothSettings
from .learn import dreambooth, has_masks, plan_dreambooth
from .prior import PriorSettings, prior_set
from .schedule import is_transformer
from .sets import training_set


@dataclass(frozen=True)
class TrainingBudget:
    """Length of a training: its steps, and the class pictures drawn for it."""

    steps: int
    prior: int  # pictures of the class


#: DreamBooth's scripts take 500 steps for a LoRA, with 100 to 200 class pictures
BUDGETS = {"quick": TrainingBudget(250, 24), "usual": TrainingBudget(500, 60), "thorough": TrainingBudget(1200, 150)}
RANK, WARMUP, AVERAGE = 8, 25, 0.98
#: how class pictures of a flow are drawn: with less guidance than a UNet's, which a distilled model does without
FLOW_CFG, DISTILLED_CFG = 4.0, 1.0
#: it gives what it has learned when it is stopped, and makes activations again where memory needs that
RUNNING = Running(keep_when_stopped=True, checkpointing=None)


def learn_subject(model, clip, vae, images: Images, class_word: str, effort: str, rate: float, seed: int, identifier: str,
                  masks: Masks | None, prompt: str, keep_every: int = 0) -> tuple[Learned, list[float], str]:
    """DreamBooth as a LoRA of UNet and text encoder with prior preservation, at the model's own size; of a transformer alone.

    Gives what was learned, the loss of each step, and the words that mean the subject. An empty ``identifier`` is replaced by a
    rare word drawn by ``seed``, and a ``rate`` of 0 by one that suits the model. Only what masks cover is learned, or what is not
    transparent. ``prompt`` is drawn while it trains, the subject's words in place of the class. What is learned is kept
    ``keep_every`` steps, with 0 at the end alone.

    Raises ValueError, before class pictures are drawn, for pictures, masks and models that cannot be learned from, without a
    class word, and where memory does not suffice.
    """
    if not class_word.strip():
        raise ValueError("class_word: it is empty; write what kind of thing the subject is, as dog, toy or woman")
    chosen, side = BUDGETS[effort], native_side(model)
    word = identifier.strip() or rare_word(clip, seed)
    subject_set = training_set(images, masks, word, class_word, "photo", "", "", Preparation(side, min(64, side)))
    subject = subject_set.naming.subject
    told = prompt if holds(prompt, subject) else re.sub(alone(class_word.strip()), lambda _: subject, prompt, count=1)
    told = told.strip() or f"a photo of a {subject}"
    options = TrainingOptions(OptimiserSettings(warmup=WARMUP), average=AVERAGE, sample_prompt=told,
                              sample_every=max(1, chosen.steps // 10), running=RUNNING, keeping=Keeping(keep_every))
    text = not is_transformer(model)  # theirs is a language model, as a rule
    numbers, options = numbers_for(DREAMBOOTH_LORA, model, rate, 1, options, text)
    settings = options.training(chosen.steps, numbers.batch, seed, bfloat16=False)
    weights = DreamBoothSettings(LORA, LoraSettings(RANK), numbers.rate, text)
    objective = ObjectiveSettings(masked=has_masks(subject_set))
    class_pictures = _class_pictures(model, chosen.prior, seed)
    passes = 2 * class_pictures.count * class_pictures.steps  # with and without the prompt
    # before minutes are spent on class pictures
    plan_dreambooth(model, clip, vae, subject_set, weights, objective, settings, options, passes)
    prior, _ = prior_set(model, clip, vae, subject_set, class_pictures)
    options = replace(options, running=replace(options.running, planned=True))
    learned, losses = dreambooth(model, clip, vae, subject_set, prior, weights, objective, settings, options)
    return learned, losses, subject


def _class_pictures(model, count: int, seed: int) -> PriorSettings:
    """Settings by which a model of this kind draws pictures of the class."""
    if not is_transformer(model):
        return PriorSettings(count, seed=seed)
    return PriorSettings(count, cfg=DISTILLED_CFG if told_guidance(model.model) else FLOW_CFG, sampler="euler",
                         scheduler="simple", seed=seed)
