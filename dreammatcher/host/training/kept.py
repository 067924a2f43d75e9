"""Keeps what is learned on the way: files that loaders take, named with their step, and a growing sheet of samples."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from PIL import Image

from ...files import atomic_write, check_file_name
from ...training import sheet as sheets
from ...training import state as states
from ...training.loop import Training
from ...training.recipe import Recipe
from ...training.settings import LARGEST_SEED, TrainingOptions
from ..graph.notes import tell
from ..graph.vae import decoded
from ..model.arguments import with_frames
from .estimate import free_on
from .job_name import Name
from .keep import Files, numbered_names
from .model import HostLearner
from .shown import drawn, plain_prompts, rough

log = logging.getLogger(__name__)

FOLDER = "dreammatcher/runs"
RECORD, SHEET, STATE = "run.json", "sheet.png", "state.safetensors"
#: in ``about`` of what was learned: the run whose steps are kept
RUN = "run"
#: of memory that is free beside what decoding takes, so that the host unloads nothing for it
MARGIN = 1.3
RESERVE = 1 << 30  # bytes, that hosts keep free for themselves
#: letters of a run's name that is made of a word
LONGEST = 60
#: writes what a training with these losses has learned so far under a name, in place of other files if they are given
Write = Callable[[list[float], str, Files | None], Files]


@dataclass(frozen=True)
class Run:
    """A run's folder in the host's output folder: which steps are kept where, and the sheet of their samples."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sheet(self) -> Path:
        return self.folder / SHEET

    @property
    def state(self) -> Path:
        """The state at the run's end, where that is kept."""
        return self.folder / STATE

    @property
    def record(self) -> Path:
        return self.folder / RECORD

    def read(self) -> dict[str, Any]:
        """The record; empty where there is none, or it is damaged."""
        try:
            said = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) and isinstance(said.get("steps"), dict) else {}

    def job(self, otherwise: str) -> str:
        """The training that the run is of, or ``otherwise`` where it is nobody's."""
        if self.record.is_file():
            return self.read().get("job", otherwise)
        return states.about(self.state).job if self.state.is_file() else otherwise

    def steps(self) -> dict[int, Files]:
        """The files of each step that is kept, in the order of the steps."""
        entries = sorted((int(step), entry) for step, entry in self.read().get("steps", {}).items())
        return {step: Files(entry["name"], Path(entry["file"]) if entry["file"] else None,
                            {word: Path(path) for word, path in entry["words"].items()}) for step, entry in entries}

    def open(self, job: Name) -> None:
        """Records whose run it is. Raises OSError where that cannot be written."""
        said = {"losses": [], "steps": {}, **self.read(), "job": job.job, "said": dict(job.said)}
        with atomic_write(self.record) as partial:
            partial.write_text(json.dumps(said, indent=1), encoding="utf-8")

    def add(self, job: Name, step: int, losses: list[float], files: Files) -> None:
        """Records a step's files. Raises OSError where that cannot be written."""
        words = {word: str(path) for word, path in files.words.items()}
        entry = {"name": files.name, "file": str(files.file or ""), "words": words}
        said = {"job": job.job, "said": dict(job.said), "losses": [float(f"{loss:.6g}") for loss in losses],
                "steps": {**self.read().get("steps", {}), str(step): entry}}
        with atomic_write(self.record) as partial:
            partial.write_text(json.dumps(said, indent=1), encoding="utf-8")


def run_called(name: str) -> Run:
    """The run of a name, whether it is there or not. Raises ValueError for a name that no folder has."""
    check_file_name("run_name", name)
    return Run(Path(folder_paths.get_output_directory()) / FOLDER / name.strip())


def run_name(wanted: str, word: str) -> str:
    """Name of a run: the one that is ``wanted``, or one made of its subject's ``word``."""
    return wanted.strip() or re.sub(r"[^\w .+-]", "", word).strip(" .")[:LONGEST].strip() or "subject"


def run_for(name: str, job: str) -> Run:
    """The run of a ``name`` in which a training keeps its steps.

    A training has one run, which it goes on with. A name that another one has gets a number. Raises ValueError as
    :func:`run_called`.
    """
    runs = (run_called(one) for one in numbered_names(name))
    return next(run for run in runs if run.job(job) == job)


class KeptSteps:
    """Keeps every so many steps of one training, and the one that it ends or is stopped at."""

    def __init__(self, run: Run, job: Name, options: TrainingOptions, vae: Any, write: Write):
        self.run, self.job, self.options, self.vae, self.write = run, job, options, vae, write
        self.last: int | None = None  # the last step that was kept

    def after_step(self, recipe: Recipe[HostLearner], training: Training) -> None:
        if training.step % self.options.keeping.every == 0:
            self.keep(recipe, training)

    def keep(self, recipe: Recipe[HostLearner], training: Training) -> None:
        """Writes the files of a step, and its row of samples. Where that fails it is said, and the training goes on."""
        step = training.step
        if self.last == step:
            return
        try:
            with training.as_finished():
                self.last = step
                name = f"{self.run.name}-step{step:08d}"
                files = self.write(training.losses, name, self.run.steps().get(step))
                self.run.add(self.job, step, training.losses, files)
                log.info("DreamMatcher: step %d is kept as %s", step, files.first)
                self._grow(recipe, training)
        except (OSError, MemoryError, RuntimeError, ValueError) as error:
            tell(f"step {step} of the run {self.run.name!r} cannot be kept as it should ({error}); the training goes on")

    def _grow(self, recipe: Recipe[HostLearner], training: Training) -> None:
        asked = self.options.keeping.prompts or tuple(filter(None, (self.options.sample_prompt,)))
        prompts = asked or plain_prompts(recipe)
        pictures = [self._picture(recipe, drawn(recipe, prompt, (training.settings.seed + number) % (LARGEST_SEED + 1)))
                    for number, prompt in enumerate(prompts)]
        sheets.read(self.run.sheet, prompts).with_row(training.step, pictures).write(self.run.sheet)

    def _picture(self, recipe: Recipe[HostLearner], latents: torch.Tensor) -> Image.Image:
        """Latents [1, C, h, w] by the autoencoder, or roughly where it has no room beside the training."""
        denoiser = recipe.model.denoiser
        if not has_room(self.vae, latents):
            log.info("DreamMatcher: the autoencoder has no room beside the training; the sheet's samples are rough")
            return rough(recipe, latents)
        with torch.inference_mode(), torch.autocast(denoiser.device.type, enabled=False):
            base = denoiser.model.model
            picture = decoded(self.vae, base.process_latent_out(with_frames(base, latents.float())), "a sample")[0]
            picture = picture[0] if picture.ndim == 4 else picture
        return Image.fromarray((picture[..., :3].float().cpu().clamp(0, 1) * 255).round().byte().numpy())


def has_room(vae: Any, latents: torch.Tensor) -> bool:
    """True if ``vae`` can decode without the host unloading the model that learns."""
    try:
        if vae.device.type == "cpu":
            return True
        weights = comfy.model_management.module_size(vae.first_stage_model)
        needed = weights + vae.memory_used_decode(latents.shape, vae.vae_dtype)
        return free_on(vae.device) >= MARGIN * needed + RESERVE
    except AttributeError:  # a VAE of another pack, which does not say what it takes
        return False


def kept_steps(options: TrainingOptions, job: Name, run: Run | None, vae: Any,
               write: Callable[[list[float], str, str, Files | None], Files]) -> KeptSteps | None:
    """The keeper of a training's steps, or None where that is not wanted. ``write``: as :data:`Write`, with the run's name."""
    if run is None or not options.keeping.every or not options.running.share.first:
        return None
    return KeptSteps(run, job, options, vae, lambda losses, name, old: write(losses, run.name, name, old))
