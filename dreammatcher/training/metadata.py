"""The heads of saved files as other programs read them: kohya's ``ss_`` keys, and Stability's model metadata (ModelSpec 1.0.1).

A1111's web UI shows ``ss_tag_frequency``, ``ss_output_name`` and the base model of a LoRA, ComfyUI's assets the trained words and
the base model, SwarmUI and model managers the ``modelspec`` keys.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from .details import DORA, HUBER, LOHA, LOKR, SMOOTH_L1, Details
from .objective import EPSILON, VELOCITY
from .sets import TrainingSet
from .settings import LoraSettings, TrainingSettings

LORA, EMBEDDING = "lora", "textual-inversion"
#: captions that are listed, the most frequent ones: heads are read whole by programs that list files
LISTED = 100
#: keys that a file has of its own, by its name and the time at which it is written
OWN = ("modelspec.title", "modelspec.date", "modelspec.architecture", "ss_output_name", "ss_training_finished_at")
ARCHITECTURE = "architecture"
#: what models predict by ModelSpec's names; it has none for flows
PREDICTION_TYPES = {EPSILON: "epsilon", VELOCITY: "v"}
#: losses by kohya's names
LOSSES = {HUBER: "huber", SMOOTH_L1: "smooth_l1"}
#: forms of a LoRA by LyCORIS' arguments
LYCORIS = {DORA: {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}, LOHA: {"algo": "loha"}, LOKR: {"algo": "lokr"}}


@dataclass(frozen=True)
class Base:
    """The model that was taught, as these programs name it."""

    architecture: str  # as stable-diffusion-v1
    version: str  # kohya's name of it, as sd_v1
    prediction: str  # as the objective knows it
    side: int  # pixels that it was made for


def head(base: Base, subject_set: TrainingSet, prior: TrainingSet | None, settings: TrainingSettings, rate: float,
         lora: LoraSettings | None, details: Details) -> dict[str, str]:
    """Keys of a training, the same for every file of it. ``lora``: its rank and alpha, if low ranks learned."""
    subject, pictures = subject_set.called(), len(set(subject_set.examples))
    side = subject_set.preparation.resolution or base.side
    folders = {f"1_{one.called() or 'pictures'}": one for one in subject_set.subjects}
    said = {
        "modelspec.sai_model_spec": "1.0.1", "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": f"{side}x{side}",
        ARCHITECTURE: base.architecture,
        "ss_base_model_version": base.version, "ss_v2": str("v2" in base.version), "ss_learning_rate": f"{rate:g}",
        "ss_max_train_steps": str(settings.steps), "ss_seed": str(settings.seed), "ss_resolution": f"({side}, {side})",
        "ss_total_batch_size": str(settings.batch), "ss_gradient_accumulation_steps": str(settings.accumulate),
        "ss_optimizer": settings.optimiser.name, "ss_lr_scheduler": settings.optimiser.schedule,
        "ss_lr_warmup_steps": str(settings.optimiser.warmup), "ss_mixed_precision": "bf16" if settings.bfloat16 else "no",
        "ss_num_train_images": str(pictures), "ss_num_reg_images": str(len(set(prior.examples)) if prior else 0),
        "ss_dataset_dirs": json.dumps({name: {"n_repeats": 1, "img_count": len(set(one.examples))}
                                       for name, one in folders.items()}),
        "ss_tag_frequency": json.dumps({name: _tags(one, one.called()) for name, one in folders.items()}, ensure_ascii=False)}
    if base.prediction in PREDICTION_TYPES:
        said["modelspec.prediction_type"] = PREDICTION_TYPES[base.prediction]
    if subject:
        hint = " or ".join(one.called() for one in subject_set.subjects)
        said |= {"modelspec.trigger_phrase": subject, "modelspec.usage_hint": f"Write {hint} in prompts."}
    if lora is not None:
        said |= {"ss_network_module": "lycoris.kohya" if details.algorithm in LYCORIS else "networks.lora",
                 "ss_network_dim": str(lora.rank), "ss_network_alpha": f"{lora.scale * lora.rank:g}"}
    return said | _finer(details)


def _finer(details: Details) -> dict[str, str]:
    """Keys of the finer choices that kohya's trainer has too, where they are at work."""
    numbers = {"ss_noise_offset": details.noise.offset, "ss_caption_dropout_rate": details.captions.dropout,
               "ss_text_encoder_lr": details.text.rate}
    said = {key: f"{value:g}" for key, value in numbers.items() if value}
    if details.noise.loss in LOSSES:
        said |= {"ss_loss_type": LOSSES[details.noise.loss], "ss_huber_schedule": details.noise.huber_schedule,
                 "ss_huber_c": f"{details.noise.huber_c:g}"}
    network = dict(LYCORIS.get(details.algorithm, {}))
    if details.rank_dropout:
        network["rank_dropout"] = f"{details.rank_dropout:g}"
    if network:
        said["ss_network_args"] = json.dumps(network)
    return said


def own_head(about: Mapping[str, str], name: str, kind: str, now: float) -> dict[str, str]:
    """``about`` with the keys of one file: its ``name``, its ``kind``, and the time of writing, in seconds since 1970."""
    said = {key: text for key, text in about.items() if key != ARCHITECTURE}
    if ARCHITECTURE not in about:  # it was learned elsewhere
        return said
    return {**said, "modelspec.architecture": f"{about[ARCHITECTURE]}/{kind}", "modelspec.title": name,
            "modelspec.date": datetime.fromtimestamp(int(now)).isoformat(), "ss_output_name": name,
            "ss_training_finished_at": str(now)}


def without_own(said: Mapping[str, str]) -> dict[str, str]:
    """The inverse of :func:`own_head`: what a file's head says of its training."""
    about = {key: text for key, text in said.items() if key not in OWN}
    if "modelspec.architecture" in said:
        about[ARCHITECTURE] = said["modelspec.architecture"].partition("/")[0]
    return about


def _tags(subject_set: TrainingSet, subject: str) -> dict[str, int]:
    """Counts the parts of captions between commas, the subject first: it is in every caption."""
    captions = [caption for example in set(subject_set.examples) for caption in example.captions]
    counts = Counter(part.strip() for caption in captions for part in caption.split(",") if part.strip())
    counts.pop(subject, None)
    others = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:LISTED]
    return {**({subject: len(captions)} if subject else {}), **dict(others)}
