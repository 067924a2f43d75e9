"""A training outside of the graph: written by a node, run by one process or many."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import comfy
import comfy.sd
import folder_paths

from ...training.export import Learned
from ...training.job import (
    CUSTOM_DIFFUSION,
    DREAMBOOTH_FULL,
    DREAMBOOTH_LORA,
    FILE,
    TEXTUAL_INVERSION,
    TOYBOX,
    Choices,
    Job,
    read,
)
from ...training.new_words import initial_words
from ...training.parallel import Share
from ...training.sets import TrainingSet
from ...training.settings import LoraSettings, ObjectiveSettings, TrainingOptions, TrainingSettings
from .details import taught
from .dreambooth import FULL, LORA, DreamBoothSettings, uses_of
from .keep import check_name, save_learned
from .learn import (
    KEYS_AND_WORD,
    WORD_ALONE,
    CustomDiffusionSettings,
    check_masks,
    custom_diffusion,
    dreambooth,
    textual_inversion,
)
from .run import check_pictures, check_prior

FOLDER = "dreammatcher/jobs"


#: from a checkpoint's path to MODEL, CLIP and VAE
Load = Callable[[str], tuple]


def checkpoints() -> list[str]:
    """Names of the host's checkpoints, and the model that ships with the pack."""
    return [*folder_paths.get_filename_list("checkpoints"), TOYBOX]


def load_checkpoint(path: str, given: bool = False) -> tuple:
    """Loads a checkpoint by the host's own loader.

    Raises ValueError where the file is neither there nor in a folder of checkpoints. Unless it is ``given`` by the user, a file
    elsewhere is only read when it holds no code: some hosts unpickle others.
    """
    here = folder_paths.get_full_path("checkpoints", re.split(r"[/\\]", path)[-1])
    folders = folder_paths.get_folder_paths("checkpoints")
    known = any(Path(path).resolve().is_relative_to(Path(folder).resolve()) for folder in folders)
    safe = given or known or Path(path).suffix.lower() in (".safetensors", ".sft")
    file = path if Path(path).is_file() and safe else here
    if file is None:
        raise ValueError(f"checkpoint: {path!r} is not on this machine; give --checkpoint FILE" if not Path(path).is_file() else
                         f"checkpoint: {path!r} may hold code and is in no folder of checkpoints of this ComfyUI; give "
                         "--checkpoint FILE if you trust it")
    return comfy.sd.load_checkpoint_guess_config(
        file, output_vae=True, output_clip=True, embedding_directory=folder_paths.get_folder_paths("embeddings"))[:3]


def write_job(checkpoint: str, subject_set: TrainingSet, prior: TrainingSet | None, method: str, name: str, choices: Choices,
              settings: TrainingSettings, options: TrainingOptions, begin_from: Learned | None = None) -> tuple[Path, str]:
    """Writes the job to a folder in the host's output folder; returns its description's path and the commands that run it.

    The same job is written to the same folder; another one of the same name gets a number. Raises ValueError for what the
    training itself would refuse before it loads a model; whether ``begin_from`` fits the model is seen when it runs.
    """
    check_name(name)
    check_pictures(subject_set, options.details.one_picture)
    prior = check_prior(subject_set, prior)
    if method in (DREAMBOOTH_LORA, DREAMBOOTH_FULL):
        chosen, objective = _dreambooth(method, choices, options)
        check_masks(subject_set, objective)
        uses = uses_of(chosen)
    else:
        initial_words(_initial_word(choices, subject_set), subject_set)
        uses = WORD_ALONE if method == TEXTUAL_INVERSION else KEYS_AND_WORD
    taught(options, uses, subject_set, prior)
    path = TOYBOX if checkpoint == TOYBOX else folder_paths.get_full_path("checkpoints", checkpoint)
    if path is None:
        raise ValueError(f"ckpt_name: {checkpoint!r} is not in ComfyUI's folders of checkpoints")
    host = {"code": str(Path(comfy.__path__[0]).resolve().parent), "base": str(folder_paths.base_path)}
    job = Job(name.strip(), method, path, subject_set, prior, choices, settings, options, host, begin_from)
    file = job.write(_folder(name.strip(), job))
    pack = Path(__file__).resolve().parents[3]
    run = f"-m dreammatcher.training \"{file}\" --comfyui \"{host['code']}\""
    run += "" if host["base"] == host["code"] else f" --base \"{host['base']}\""
    return file, (f"Written to {file}\nRun it in {pack} with\npython {run}\nor on every card of a machine with\n"
                  f"accelerate launch --multi_gpu {run}")


def _folder(name: str, job: Job) -> Path:
    root, number = Path(folder_paths.get_output_directory()) / FOLDER, 1
    while True:
        folder = root / (name if number == 1 else f"{name}_{number}")
        if not (folder / FILE).exists() or _same(folder / FILE, job):
            return folder
        number += 1


def _same(path: Path, job: Job) -> bool:
    try:
        other = read(path)
    except ValueError:
        return False
    sets = [(one.subject_set.fingerprint(), one.prior and one.prior.fingerprint()) for one in (job, other)]
    return sets[0] == sets[1] and job.described() == other.described()


def run_job(job: Job, share: Share, load: Load = load_checkpoint) -> tuple[Learned, str]:
    """Learns, and saves what was learned where the host's loaders look; says where. Raises ValueError as the methods do."""
    model, clip, vae = load(job.checkpoint)
    options = replace(job.options, sample_every=job.options.sample_every or 0)  # nobody looks at it while it trains
    learned, losses = _learn(job, model, clip, vae, replace(options, running=replace(options.running, share=share)))
    if not share.first:
        return learned, ""
    _, said = save_learned(learned, job.name)
    return learned, f"{len(losses)} steps, the last loss {losses[-1]:.4f}\n{said}"


def _dreambooth(method: str, chosen: Choices, options: TrainingOptions) -> tuple[DreamBoothSettings, ObjectiveSettings]:
    kind = LORA if method == DREAMBOOTH_LORA else FULL
    return (DreamBoothSettings(kind, LoraSettings(chosen.rank, options.alpha), chosen.rate, chosen.text_encoder),
            options.objective(chosen.prior_weight, chosen.masked))


def _initial_word(chosen: Choices, subject_set: TrainingSet) -> str:
    """The word from which a new one begins, or one for each subject: without a choice their classes."""
    return chosen.initial_word or ", ".join(one.naming.class_word for one in subject_set.subjects)


def _learn(job: Job, model, clip, vae, options: TrainingOptions) -> tuple[Learned, list[float]]:
    chosen, subject_set, prior, settings = job.choices, job.subject_set, job.prior, job.settings
    if job.method in (DREAMBOOTH_LORA, DREAMBOOTH_FULL):
        weights, objective = _dreambooth(job.method, chosen, options)
        return dreambooth(model, clip, vae, subject_set, prior, weights, objective, settings, options, job.begin)
    word = _initial_word(chosen, subject_set)
    if job.method == TEXTUAL_INVERSION:
        return textual_inversion(model, clip, vae, subject_set, word, chosen.vectors, chosen.rate, settings, options,
                                 begin_from=job.begin)
    assert job.method == CUSTOM_DIFFUSION
    how = CustomDiffusionSettings(chosen.rate, chosen.word_rate, chosen.sizes)
    return custom_diffusion(model, clip, vae, subject_set, prior, word, how, chosen.prior_weight, settings, options,
                            begin_from=job.begin)
