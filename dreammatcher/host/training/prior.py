"""Pictures of a subject's class, drawn by the model itself before it learns (Ruiz et al. 2023, Sec. 3.2), and kept on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import numpy as np
import torch
from einops import rearrange
from PIL import Image

from ...files import atomic_write
from ...training.captions import Naming
from ...training.data import Example
from ...training.sets import TrainingSet, together
from ...training.settings import LARGEST_SEED
from ..graph.notes import tell
from ..graph.progress import Interrupted
from ..graph.vae import decoded
from ..model.arguments import with_frames
from ..model.digest import digest
from ..model.family import cell_of, native_side
from ..model.identity import clip_identity, model_identity, vae_identity
from ..text.conditioning import encode
from .run import check_class

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
#: in the host's output folder
FOLDER = "dreammatcher/prior"


@dataclass(frozen=True)
class PriorSettings:
    """Settings for drawing class pictures. Each picture has its own seed, counted from ``seed``; after the largest comes 0."""

    count: int = 100
    steps: int = 25
    cfg: float = 7.5
    sampler: str = "euler_ancestral"
    scheduler: str = "normal"
    seed: int = 0


def prior_set(model, clip, vae, subject_set: TrainingSet, settings: PriorSettings) -> tuple[TrainingSet, str]:
    """Class pictures for a subject's set, and a report of how many were drawn and how many were there. Of several subjects, each
    class has its pictures.

    Pictures that an earlier run left are read; only missing ones are drawn, so that an interrupted run goes on. One that is
    damaged, or of one colour as a VAE that makes NaN leaves them, is drawn again. Raises ValueError when the set has no class
    word, when its class is called by its identifier, and, naming the part at fault, for a picture that is not finite, which
    is not kept.
    """
    check_class(subject_set)
    classes = {one.naming.class_word.casefold(): one for one in reversed(subject_set.subjects)}
    drawn = [_of_class(model, clip, vae, one, settings) for one in reversed(classes.values())]
    joined = together({f"training_set of {one.naming.class_word!r}": one for one, _ in drawn})
    return joined, "\n".join(report for _, report in drawn)


def _of_class(model, clip, vae, subject_set: TrainingSet, settings: PriorSettings) -> tuple[TrainingSet, str]:
    captions = subject_set.naming.prior_captions()
    resolution = subject_set.preparation.resolution or native_side(model)
    key = _key(model, clip, vae, captions, resolution, settings)
    folder = Path(folder_paths.get_output_directory()) / FOLDER / key
    folder.mkdir(parents=True, exist_ok=True)
    there = ((number, _read(_file(folder, number))) for number in range(settings.count))
    pictures = {number: picture for number, picture in there if picture is not None and _shows_something(picture)}
    missing = [number for number in range(settings.count) if number not in pictures]
    bar = comfy.utils.ProgressBar(max(1, len(missing)))
    said = {text: encode(clip, text) for text in (*dict.fromkeys(captions[number % len(captions)] for number in missing), "")}
    try:
        for done, number in enumerate(missing):
            comfy.model_management.throw_exception_if_processing_interrupted()
            positive = said[captions[number % len(captions)]]
            _write(_draw(model, vae, positive, said[""], resolution, settings, number), _file(folder, number))
            pictures[number] = _read_again(_file(folder, number))
            bar.update_absolute(done + 1, len(missing))
    except Interrupted:
        kept = sum(_file(folder, number).is_file() for number in range(settings.count))
        tell(f"stopped while class pictures are drawn: nothing is learned yet, so the graph stops. {kept} of {settings.count} "
             "pictures are kept; queued again, only the others are drawn")
        raise
    examples = tuple(Example(pictures[number], (captions[number % len(captions)],)) for number in range(settings.count))
    naming = Naming("", subject_set.naming.class_word, subject_set.naming.templates)
    report = (f"{settings.count} pictures of {subject_set.naming.class_word!r}: {len(missing)} drawn now, the others were there\n"
              f"{folder}")
    return TrainingSet(examples, naming, subject_set.preparation), report


def _draw(model, vae, positive: list, negative: list, resolution: int, settings: PriorSettings, number: int) -> torch.Tensor:
    """One picture, [H, W, 3] in 0..1."""
    base, side = model.model, resolution // cell_of(model)
    latent = with_frames(base, torch.zeros(1, base.latent_format.latent_channels, side, side))
    seed = (settings.seed + number) % (LARGEST_SEED + 1)
    noise = comfy.sample.prepare_noise(latent, seed)
    latents = comfy.sample.sample(model, noise, settings.steps, settings.cfg, settings.sampler, settings.scheduler, positive,
                                  negative, latent, disable_pbar=True, seed=seed)
    picture = decoded(vae, latents, f"class picture {number + 1}")[0]
    return (picture[0] if picture.ndim == 4 else picture).float().cpu().clamp(0, 1)


def _key(model, clip, vae, captions: tuple[str, ...], resolution: int, settings: PriorSettings) -> str:
    """Name of the folder: it changes with what the models compute and everything that is chosen but the number of pictures."""
    chosen = {name: value for name, value in asdict(settings).items() if name != "count"}
    return digest(model_identity(model), clip_identity(clip), vae_identity(vae), captions, resolution, chosen)[:16]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.png"


def _write(picture: torch.Tensor, path: Path) -> None:
    with atomic_write(path) as partial:
        Image.fromarray((picture * 255).round().byte().numpy()).save(partial, "PNG")


def _shows_something(picture: torch.Tensor) -> bool:
    return bool((picture != picture[:, :1, :1]).any())


def _read(path: Path) -> torch.Tensor | None:
    """A picture [3, H, W], or None where there is none or it is damaged."""
    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
    except OSError:
        return None
    return rearrange(pixels.half() / 255, "h w c -> c h w").contiguous()  # half: there may be a thousand of them


def _read_again(path: Path) -> torch.Tensor:
    """A picture that was just written. Raises ValueError, naming the file, when it is gone or damaged."""
    picture = _read(path)
    if picture is None:
        raise ValueError(f"{path} was written and cannot be read; look whether the disk is full, or another program "
                         "takes files away")
    return picture
