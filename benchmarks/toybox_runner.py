"""One way to make every picture that the benchmarks measure: Toybox in the real host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.boot import Host
from harness.graphs import CFG, STEPS
from toybox.evaluation import Case
from toybox.making.precision import has_fast_bfloat16
from toybox.vocab import TOKENIZER_DIR

FOLDER = TOKENIZER_DIR.parent


@dataclass(frozen=True)
class Sampling:
    """Settings of KSampler."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str


@dataclass(frozen=True, eq=False)
class Prompted:
    """A model with prompts of its own."""

    model: Any
    positive: list
    negative: list


FLOW = Sampling(30, 2.0, "euler", "simple")
#: by kind of Toybox: the UNet, the transformer and the edit model made of it (both on hosts that know Z-Image only)
SAMPLINGS = {"unet": Sampling(STEPS, CFG, "ddim", "ddim_uniform"), "z": FLOW, "z-edit": FLOW}


class ToyboxRunner:
    """Toybox in the host, and one way to sample for every arm."""

    def __init__(self, host: Host, weights: Path | None = None, cfg: float | None = None, kind: str = "unet",
                 steps: int | None = None, sampler: str | None = None):
        """``weights``: another Toybox file than the shipped one. ``kind``: one of ``SAMPLINGS``; the others change it."""
        self.host, self.module, self.kind = host, host.pack().module, kind
        own = SAMPLINGS[kind]
        self.sampling = replace(own, steps=steps or own.steps, cfg=own.cfg if cfg is None else cfg,
                                sampler=sampler or own.sampler)
        toybox = self.module("toybox.host")
        if kind != "unet":
            fast = kind == "z-edit" and has_fast_bfloat16(torch.device("cpu"))  # its training computed so too
            self.model, self.clip, self.vae = self.module("toybox.transformer").load(
                weights or FOLDER / "model_z.safetensors", FOLDER / "model.safetensors", TOKENIZER_DIR,
                toybox.embedding_folders(), torch.bfloat16 if fast else torch.float32)
        elif weights:
            self.model, self.clip, self.vae = toybox.load(weights, TOKENIZER_DIR, toybox.embedding_folders())
        else:
            self.model, self.clip, self.vae = host.nodes["ToyboxLoader"]().load()

    def encode(self, picture: np.ndarray) -> dict:
        return {"samples": self.vae.encode(torch.from_numpy(np.array(picture)).float()[None] / 255)}

    def decode(self, latent: dict) -> np.ndarray:
        return (self.vae.decode(latent["samples"])[0].clamp(0, 1) * 255).round().byte().numpy()

    def sample(self, model, positive: list, negative: list, seed: int, width: int = 16) -> np.ndarray:
        empty, how = {"samples": torch.zeros(1, 4, 16, width)}, self.sampling
        latent = self.host.nodes["KSampler"]().sample(
            model, seed, how.steps, how.cfg, how.sampler, how.scheduler, positive, negative, empty, 1.0)[0]
        return self.decode(latent)

    def prepare(self, case: Case) -> SimpleNamespace:
        """Reference, prompts and masks of a case."""
        picture, parts = case.reference()
        reference, subject = self.reference(picture, case.reference_prompt(), case.subject.kind)
        target, wanted = self.prompt(case.prompt(), case.subject.kind)
        mask = self.module("dreammatcher.matching.settings").MaskSettings(subject, wanted)
        return SimpleNamespace(picture=picture, parts=parts, reference=reference, mask=mask, target=target,
                               negative=self.prompt("")[0], prompts=(case.reference_prompt(), case.prompt()), seed=case.seed)

    def prompt(self, text: str, word: str | None = None) -> tuple[list, Any]:
        """CONDITIONING, and the subject that ``word`` names in it."""
        conditioning = self.module("dreammatcher.host.text.conditioning")
        subject = conditioning.subject_of(self.clip, text, word) if word else None
        return conditioning.encode(self.clip, text, subject), subject

    def named(self, ready: SimpleNamespace, shared: bool) -> dict[str, object]:
        """Subjects of both prompts when nobody names them: words that both share, or all that each shows."""
        subjects = [self.module("dreammatcher.host.text.conditioning").subject_of(self.clip, text, "") for text in ready.prompts]
        if shared:
            subjects = self.module("dreammatcher.host.matching.masks").shared_subjects(*subjects)[:2]
        return {"reference_subject": subjects[0], "target_subject": subjects[1]}

    def reference(self, picture: np.ndarray, text: str, word: str) -> tuple[object, object]:
        """An inverted picture, whose feature store every arm shares, and its subject."""
        positive, subject = self.prompt(text, word)
        reference, _ = self.module("dreammatcher.host.matching.invert").invert_reference(
            self.model, self.encode(picture), positive, self.prompt("")[0], self.sampling.steps, self.sampling.scheduler)
        return reference, subject

    def ahead(self, ready: SimpleNamespace, **options) -> SimpleNamespace:
        """The same with every feature made ahead of sampling, so that arms compare in time."""
        options = self.module("dreammatcher.matching.features").FeatureOptions(**options)
        invert = self.module("dreammatcher.host.matching.invert")
        prepared = invert.prepare_features(self.model, ready.reference, ready.mask, options)
        return SimpleNamespace(**{**vars(ready), "reference": prepared})

    def guided(self, model, **settings):
        chosen = self.module("dreammatcher.matching.guidance").GuidanceSettings(**settings)
        return self.module("dreammatcher.host.matching.guide").guide(model, chosen)

    def blocks(self) -> list[str]:
        """The output blocks of each matched grid, coarse to fine, as Apply (DreamMatcher) takes them."""
        sites = self.module("dreammatcher.host.model.backbone").backbone_of(self.model.model).self_attention
        return [",".join(sorted({str(number) for (_, number, _), halvings in sites.items() if halvings == wanted}))
                for wanted in sorted(set(sites.values()), reverse=True)]

    def matched(self, ready: SimpleNamespace, mask: dict | None = None, match: dict | None = None, layers: str = "", **settings):
        """The model with one arm's settings; ``mask`` and ``match`` change those settings of the default."""
        chosen = self.module("dreammatcher.matching.settings").ApplySettings(**settings)
        chosen = replace(chosen, match=replace(chosen.match, **(match or {})))
        return self.module("dreammatcher.host.matching.apply").apply(
            self.model, ready.reference, replace(ready.mask, **(mask or {})), chosen, layers)[0]

    def best(self, ready: SimpleNamespace, mask: dict | None = None, match: dict | None = None, layers: str = "", **settings):
        """:meth:`matched` with the settings of new nodes as what is changed."""
        module = self.module("dreammatcher.matching.settings")
        return self.matched(ready, {"carried": True, **(mask or {})}, {**vars(module.PRESETS["best"]), **(match or {})},
                            layers, **{"start": module.BEST_START, **settings})

    def easy(self, ready: SimpleNamespace, mask: dict | None = None):
        """:meth:`best`, guided as new nodes guide: what Easy (DreamMatcher) makes."""
        chosen = self.module("dreammatcher.matching.guidance").BEST_GUIDANCE
        return self.module("dreammatcher.host.matching.guide").guide(self.best(ready, mask), chosen)


def save_strip(folder: Path, number: int, pictures: list[np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(pictures, 1)).save(folder / f"{number:03}.png")
