"""One training on the host: what it works on, how it is named, and the loop with the host's progress bar and interrupt."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from einops import rearrange

from ...sizes import single_frame
from ...texts import holds
from ...training.data import LatentSet
from ...training.loop import REMEDY, Training, train
from ...training.recipe import Recipe
from ...training.records import Records, check_records
from ...training.sets import TrainingSet
from ...training.settings import NO_RECORDS, Running, TrainingOptions, TrainingSettings
from ...training.shelf import Shelf
from ...training.state import Checkpoint, in_words
from ..graph.notes import tell
from ..graph.progress import Interrupted
from ..graph.vae import encoded
from ..model.arguments import frames, with_frames
from ..model.family import cell_of
from ..model.identity import beside_weights, weights_identity
from . import safety
from .going_on import Start, begun
from .job_name import Name, digest_of, named
from .kept import KeptSteps
from .model import HostDenoiser, HostLearner
from .plan import check_memory
from .shown import Shown

log = logging.getLogger(__name__)

@dataclass(frozen=True, eq=False)
class Ready:
    """Pictures as latents, and the model that learns from them."""

    denoiser: HostDenoiser
    subject_set: LatentSet
    prior: LatentSet | None
    vae: Any
    identity: str  # of what the model computes and of latents, the same after a restart of the host
    base: str  # of what the model computes alone

    def job(self, method: str, **choices: object) -> Name:
        """The name of a training by a ``method`` with these choices, each under its input's name."""
        return named(self.identity, self.base, method, **choices)


def check_pictures(subject_set: TrainingSet, allow_one: bool = False) -> None:
    """Raises ValueError for a single picture, unless it is allowed: its background, light and pose are learned with the subject.

    An allowed one is warned of on the node.
    """
    alone = [one for one in subject_set.subjects if len(set(one.examples)) < 2]
    if not alone:
        return
    whose = f" of {alone[0].naming.subject!r}" if subject_set.parts else ""
    if not allow_one:
        raise ValueError(f"training_set: it has one picture{whose}, from which the background would be learned as well; give 3 "
                         "to 5 in different places and poses, or turn allow_one_picture on in Training Details (DreamMatcher)")
    tell(f"training_set: it has one picture{whose}, and allow_one_picture is on. What this costs: background, light, pose and "
         "framing are learned with the subject and come back in other prompts, and the more so the longer it trains. A mask of "
         "the subject, a caption that names the rest, class pictures and fewer steps keep more of it apart")


def check_prior(subject_set: TrainingSet, prior: TrainingSet | None) -> TrainingSet | None:
    """The prior, or None for the subject's own set: a bypassed Prior Set (DreamMatcher) passes it on.

    Raises ValueError for a prior without a class, and for one whose captions name the subject. Of several subjects, those without
    pictures of their class are told.
    """
    if prior is subject_set:
        tell("prior_set: it is the subject's own set, as a bypassed Prior Set (DreamMatcher) passes it on; the subject is "
             "learned without class pictures")
    if prior is None or prior is subject_set:
        return None
    for one in subject_set.subjects:
        word = one.naming.identifier
        if not one.naming.class_word:
            which = f" of {word!r}" if subject_set.parts else ""
            raise ValueError(f"class_word: it is empty in the training set{which}, and prior preservation needs the subject's "
                             "class; write it there, or take the prior set away")
        named = next((text for example in prior.examples for text in example.captions if holds(text, word)), None)
        if named is not None:
            raise ValueError(f"prior_set: its caption {named!r} holds the identifier {word!r}, so pictures of the class would be "
                             "learned as the subject; leave the identifier empty in the prior's Training Set (DreamMatcher)")
    there = {one.naming.class_word for one in prior.subjects}
    without = [one.naming.subject for one in subject_set.parts if one.naming.class_word not in there]
    if without:
        tell(f"prior_set: it has no pictures of the class of {', '.join(map(repr, without))}, which may be forgotten; give the "
             "joined set to Prior Set (DreamMatcher), which draws those of every class")
    return prior


def check_class(subject_set: TrainingSet) -> None:
    """Raises ValueError, before class pictures are drawn, for a class that :func:`check_prior` would refuse them for."""
    for naming in (one.naming for one in subject_set.subjects):
        if any(holds(text, naming.identifier) for text in naming.prior_captions()):
            raise ValueError(f"class_word: {naming.class_word!r} holds the identifier {naming.identifier!r}, so pictures of the "
                             "class would be learned as the subject; choose a rare word as identifier, as sks")


@contextmanager
def ready(model, clip, vae, subject_set: TrainingSet, prior: TrainingSet | None, settings: TrainingSettings,
          running: Running, constant_start: bool = False, prompts: tuple[str, ...] | None = None) -> Iterator[Ready]:
    """Encodes the pictures, then loads the model that learns from them.

    With ``prompts`` these and all captions are read before the network is loaded, and the text encoder is not kept beside it.
    Pictures come first, since encoding may move other models. Latents beyond a size are kept in the host's temporary folder. They
    and copies of the model that were made for this are gone afterwards.
    Raises as :class:`HostDenoiser`.
    """
    def encode(pictures: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.random.fork_rng():  # older hosts draw from the encoder's distribution
            torch.manual_seed(settings.seed)
            rows = rearrange(pictures, "b c h w -> b h w c")
            # an autoencoder of films takes several pictures for one film
            latents = torch.cat([encoded(vae, part, "a picture of the training set")
                                 for part in (rows.split(1) if frames(model.model) else [rows])])
            latents = model.model.process_latent_in(with_frames(model.model, latents.float().cpu()))
        return single_frame(latents).clone()

    with closing(Shelf(Path(folder_paths.get_temp_directory()) / "dreammatcher", tell=tell)) as shelf:
        with torch.inference_mode(False):
            learned = subject_set.prepared(encode, shelf)
            known = None if prior is None else prior.same_way(subject_set.preparation).prepared(encode, shelf)
        if shelf.size:
            log.info("DreamMatcher: %s of latents are kept in %s while it trains", in_words(shelf.size), shelf.folder)
        side = subject_set.preparation.resolution // cell_of(model)
        said = [] if prompts is None else [*prompts, *(text for one in (learned, known) if one for example in one.examples
                                                       for text in example.captions)]
        denoiser = HostDenoiser(model, clip, (side, side), constant_start, running.checkpointing, said)
        try:
            towers = [weights_identity(module)
                      for module in (denoiser.model.model.diffusion_model, denoiser.clip.cond_stage_model)]
            sums = [float(example.latents.double().sum()) for each in (learned, known) if each for example in each.examples]
            beside = beside_weights(denoiser.model)
            yield Ready(denoiser, learned, known, vae, json.dumps([*towers, sums, beside]), digest_of([*towers, beside]))
        finally:
            denoiser.give_back()


def run(recipe: Recipe[HostLearner], settings: TrainingSettings, name: Name, options: TrainingOptions,
        kept: KeptSteps | None = None, start: Start | None = None) -> list[float]:
    """The loss of each step. A stopped run goes on from its last step when it is queued again, or as ``start`` says.

    ``kept`` keeps what is learned on the way, and when the run ends or is stopped.

    With ``keep_when_stopped`` the host's interrupt ends the training instead, and the graph goes on with what is learned. Before
    the first step there is nothing to go on with: the graph stops. An interrupt after the last step stops what comes after it.
    Raises FloatingPointError as :meth:`Training.advance`.
    """
    start = start or Start("")
    checkpoint = Checkpoint(safety.path_of(name.job), name.job, options.running.keep_minutes, name.kin, start.about(name.said),
                            start.run.state if start.run and options.keeping.state else None)
    bar, shown = comfy.utils.ProgressBar(settings.steps), Shown(recipe, options)
    size = sum(value.numel() for value in recipe.learned.parameters())
    log.info("DreamMatcher: training of %d numbers for %d steps", size, settings.steps)

    settings = check_memory(recipe, settings, options.running, refuse=not options.running.planned, prompts=prompts_of(options))
    stop_if_interrupted("before the first step")
    reached: list[Training] = []
    records = _records(start, name, options)

    def after_step(training: Training) -> bool:
        reached[:] = [training]
        if not options.running.share.first:
            return False
        if training.step in (10, 100) or training.step % 500 == 0:
            log.info("DreamMatcher: step %d of %d, about %.0f s left", training.step, settings.steps,
                     shown.seconds_left(training))
        try:
            records.after_step(training)
            if kept is not None:
                kept.after_step(recipe, training)
            # older hosts look for interrupts in the progress bar, newer ones while a sample is drawn
            bar.update_absolute(training.step, settings.steps, shown.after_step(training))
            records.resume()
            comfy.model_management.throw_exception_if_processing_interrupted()
        except Interrupted:
            if training.step == settings.steps:  # nothing is left to stop here
                comfy.model_management.interrupt_current_processing()
                return True
            if not options.running.keep_when_stopped:
                raise
            log.warning("DreamMatcher: stopped at step %d of %d; the graph goes on with what is learned", training.step,
                        settings.steps)
            return True
        return False

    # without its cache: that would keep the first step's cast of every weight that learns
    autocast = torch.autocast(recipe.model.device.type, torch.bfloat16, enabled=settings.bfloat16, cache_enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), autocast:
        recipe.learned.to(recipe.model.device)
        share = options.running.share
        if share.first:
            safety.prune(checkpoint.path)
        try:
            training = train(recipe, settings, checkpoint, after_step, share, partial(begun, recipe, start), tell)
        except BaseException:
            if kept is not None and reached:
                kept.keep(recipe, reached[0])
            if share.first and checkpoint.path.is_file():
                log.info("DreamMatcher: the training was stopped; queued again, it goes on from its state in %s", checkpoint.path)
            raise
        finally:
            records.close()
        if kept is not None:
            kept.keep(recipe, training)
    if share.first:
        safety.forget(checkpoint, start.stopped)  # of use to a run that is to go on
        if training.skipped:
            tell(f"batches that were left out, since their loss or gradient was not finite: {training.skipped} beside "
                 f"{training.step} steps. If that is a large share, {REMEDY}")
    return training.losses


def _records(start: Start, name: Name, options: TrainingOptions) -> Records:
    """The writer of a training's course beside the files of its run. Raises ValueError for a package that is missing."""
    wanted = options.keeping.records if start.run is not None and options.running.share.first else NO_RECORDS
    check_records(wanted)
    if start.run is not None and (wanted != NO_RECORDS or options.keeping.state and options.running.share.first):
        try:
            start.run.open(name)
        except OSError as error:
            tell(f"the records of this training cannot be written to {start.run.folder} ({error}); it goes on without them")
            wanted = NO_RECORDS
    return Records(Path() if start.run is None else start.run.folder, wanted, tell)


def prompts_of(options: TrainingOptions) -> tuple[str, ...]:
    """Prompts that are drawn while it trains."""
    return tuple(prompt for prompt in (options.sample_prompt, *options.keeping.prompts) if prompt)


def stop_if_interrupted(where: str) -> None:
    """Raises the host's interrupt, and says on the node that nothing is learned yet."""
    try:
        comfy.model_management.throw_exception_if_processing_interrupted()
    except Interrupted:
        tell(f"stopped {where}: nothing is learned yet, so the graph stops; queue it again to begin")
        raise

