"""The models that ``make bench`` times: UNets of real size with random weights, since only the work counts.

Transformers are in :mod:`.timing_transformer`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from harness.boot import Host

PLAIN, FIRST, CACHED, INSIDE, BALANCED, PAPER, OFFICIAL = (
    "plain", "first picture", "cached", "cached + guidance inside", "cached, balanced", "cached, balanced + guidance paper",
    "the official way")
VICO_FIRST, VICO_CACHED = "ViCo, first picture", "ViCo, cached"


@dataclass(frozen=True)
class Family:
    """A UNet as the host lays it out."""

    host_class: str
    multipliers: tuple[int, ...]
    depth: tuple[int, ...]
    depth_output: tuple[int, ...]
    middle: int
    linear: bool
    context: int
    pooled: int | None = None  # width of the pooled prompt

    def config(self, width: int) -> dict:
        config = {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": width,
            "num_res_blocks": [2] * len(self.multipliers), "channel_mult": list(self.multipliers),
            "transformer_depth": list(self.depth),
            "transformer_depth_output": list(self.depth_output), "transformer_depth_middle": self.middle,
            "use_spatial_transformer": True, "use_linear_in_transformer": self.linear, "context_dim": self.context,
            "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
        }
        if self.pooled:
            # the host adds six sizes of 256 values each to the pooled prompt
            config.update(adm_in_channels=self.pooled + 6 * 256, num_classes="sequential")
        return config


SD15 = Family("SD15", (1, 2, 4, 4), (1,) * 6 + (0, 0), (1,) * 9 + (0,) * 3, 1, False, 768)
SDXL = Family("SDXL", (1, 2, 4), (0, 0, 2, 2, 10, 10), (0, 0, 0, 2, 2, 2, 10, 10, 10), 10, True, 2048, 1280)


@dataclass(frozen=True)
class TimingCase:
    """One setting in which all arms are compared."""

    family: Family
    side: int  # of the latent
    batch: int
    arms: tuple[str, ...]
    width: int = 320  # base channels: 320 makes 860 M parameters of SD1.5 and 2.6 G of SDXL
    gigabytes: float = 0.0  # of memory that a run takes in float32


ALL = (PLAIN, FIRST, CACHED, INSIDE, BALANCED, PAPER, OFFICIAL, VICO_FIRST, VICO_CACHED)
CASES = {
    "SD1.5 512x512": TimingCase(SD15, 64, 1, ALL, gigabytes=11),
    "SD1.5 512x512, 4 pictures": TimingCase(SD15, 64, 4, (PLAIN, FIRST, CACHED, INSIDE), gigabytes=16),
    "SDXL 1024x1024": TimingCase(SDXL, 128, 1, (PLAIN, FIRST, CACHED, INSIDE), gigabytes=19),
}


def random_unet(family: Family, width: int, dtype: torch.dtype, device: torch.device):
    """The host's ModelPatcher around a family's UNet, with weights that keep activations in range."""
    import comfy.supported_models

    return random_model(getattr(comfy.supported_models, family.host_class)(family.config(width)), dtype, device)


def random_model(config, dtype: torch.dtype, device: torch.device):
    """The host's ModelPatcher around the network of one of its configurations, as :func:`random_unet`."""
    import comfy.model_patcher

    config.set_inference_dtype(dtype, None)
    base = config.get_model({}, "", device=device)
    torch.manual_seed(0)
    for name, parameter in base.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(float(name.endswith("weight")))
    return comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=torch.device("cpu"))


class Clock:
    """Wall time of what is done inside, the device's work included."""

    read: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, device: torch.device):
        self.cuda, self.seconds = device.type == "cuda", 0.0

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return self.read()

    def __enter__(self) -> Clock:
        self.started = self.now()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = self.now() - self.started


class TimingModel:
    """A case's model with an inverted reference."""

    tokens = 77  # of a prompt
    cfg, level = 7.5, 1.0  # a noise level that the family has

    case: Any  # TimingCase, or a transformer's

    def __init__(self, host: Host, case: Any, steps: int, dtype: torch.dtype, device: torch.device):
        self.module = host.pack().module
        self.case, self.steps, self.device = case, steps, device
        self.model = self.build(dtype)
        self.channels = self.model.model.latent_format.latent_channels
        self.side = case.side
        self.kept = self.module("dreammatcher.matching.features").FeatureStore(capacity=1 << 40)
        Subject = self.module("dreammatcher.matching.reference").Subject
        self.mask = self.module("dreammatcher.matching.settings").MaskSettings(
            Subject("dog", "a dog", (5,), self.tokens), Subject("dog", "the dog", (6,), self.tokens))
        latent = {"samples": self.noise(1, 7)}
        # inverted at the noise levels that are sampled: fewer steps of another schedule would visit others
        self.reference, _ = self.module("dreammatcher.host.matching.invert").invert_reference(
            self.model, latent, self.prompt(1), self.prompt(2), steps, "normal")

    def build(self, dtype: torch.dtype):
        return random_unet(self.case.family, self.case.width, dtype, self.device)

    def noise(self, pictures: int, seed: int) -> torch.Tensor:
        return torch.randn(pictures, self.channels, self.side, self.side, generator=torch.Generator().manual_seed(seed))

    def prompt(self, seed: int) -> list:
        generator, family = torch.Generator().manual_seed(seed), self.case.family
        text = torch.randn(1, 77, family.context, generator=generator)
        return [[text, {"pooled_output": torch.randn(1, family.pooled, generator=generator)} if family.pooled else {}]]

    def matched(self, store: object, preset: str = "best"):
        settings = self.module("dreammatcher.matching.settings")
        apply = self.module("dreammatcher.host.matching.apply").apply
        mask = replace(self.mask, carried=preset == "best")
        chosen = settings.ApplySettings(start=0.0, match=settings.PRESETS[preset])
        return apply(self.model, self.reference.with_store(store), mask, chosen)[0]

    def vico(self):
        """The model with ViCo's blocks, of random weights, looking at a picture of the sample's size; its store is empty."""
        sites, block = self.module("dreammatcher.host.vico.sites"), self.module("dreammatcher.vico.block")
        learned = self.module("dreammatcher.vico.learned")
        blocks = block.begun(sites.widths(self.model.model), torch.Generator().manual_seed(0))
        vico = learned.ViCo(learned.tensors_of(blocks), torch.ones(1, self.case.family.context), {"word": "sks"})
        reference = self.noise(1, 7)
        settings = self.module("dreammatcher.vico.settings").LookSettings()
        return self.module("dreammatcher.host.vico.apply").apply_vico(
            self.model, vico, reference, settings, self.mask.reference_subject)[0]

    def guided(self, model, mode: str):
        settings = self.module("dreammatcher.matching.guidance").GuidanceSettings(1.0, 0.0, 1.0, mode)
        return self.module("dreammatcher.host.matching.guide").guide(model, settings)

    def seconds(self, model) -> list[float]:
        """Seconds of each step. The first one counts from the call, and has nothing to match."""
        import comfy.sample

        noise = self.noise(self.case.batch, 3)
        clock = Clock(self.device)
        marks = [clock.now()]
        comfy.sample.sample(model, noise, self.steps, self.cfg, "euler", "normal", self.prompt(3), self.prompt(2),
                            torch.zeros_like(noise), callback=lambda *_: marks.append(clock.now()), disable_pbar=True, seed=0)
        return [after - before for before, after in zip(marks, marks[1:])]

    def rows_together(self) -> float:
        """Time of one call of the network with the reference's row beside a guidance pair, against two calls of their own."""
        ode_derivative = self.module("dreammatcher.host.model.capture").ode_derivative
        taken: dict[int, list[float]] = {1: [], 2: [], 3: []}
        for _ in range(3):
            for rows, times in taken.items():
                x = self.noise(rows, 5).to(self.device)
                with Clock(self.device) as clock:
                    ode_derivative(self.model.model, self.reference.positive, x, self.level)
                times.append(clock.seconds)
        one, two, three = (statistics.median(times) for times in taken.values())
        return round(three / (one + two), 3)
