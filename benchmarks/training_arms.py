"""The arms that ``make bench-training`` compares: one step of a LoRA on a UNet of SD1.5's size, by this pack and by others.

Latents and the prompt's conditioning are made ahead in every arm, so the UNet's step alone is timed. Weights, picture size, batch
and rank are the same; the host's own node puts its LoRA on every layer and cannot be told otherwise, the other two on attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from harness.boot import Host

from .timing_model import SD15, random_unet

TEXT, PICTURES = (1, 77, 768), 4


@dataclass(frozen=True)
class Setting:
    """One setting in which all arms are compared."""

    side: int  # of the latent
    batch: int
    rank: int
    width: int  # base channels; 320 makes SD1.5's 860 M parameters
    steps: int
    checkpointing: bool = False


#: trains, calling what it is given after every step
Run = Callable[[Callable[[], None]], None]


def drawn(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [4, 4, h, w] and a prompt [1, 77, 768]."""
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(PICTURES, 4, setting.side, setting.side, generator=generator),
            torch.randn(TEXT, generator=generator))


def this_pack(host: Host, setting: Setting) -> Run:
    module = host.pack().module
    training, settings, data = (module(f"dreammatcher.training.{name}") for name in ("dreambooth", "settings", "data"))
    latents, text = drawn(setting)
    model = random_unet(SD15, setting.width, torch.float32, torch.device("cpu"))
    _, clip, _ = host.nodes["ToyboxLoader"]().load()
    conditioning = module("dreammatcher.subject").Conditioning(text)

    HostDenoiser: Any = module("dreammatcher.host.training.model").HostDenoiser

    class Ahead(HostDenoiser):
        def encode(self, captions, weights=None, rows=None):
            return type(conditioning)(conditioning.cross_attention.expand(len(captions), -1, -1))

    denoiser = Ahead(model, clip, (setting.side, setting.side), checkpointing=setting.checkpointing)
    pictures = data.LatentSet(tuple(data.Prepared(latent[None], None, ("a sks dog",)) for latent in latents))

    def run(mark: Callable[[], None]) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            lora = training.lora_of(denoiser.unet, training.UNET_TARGETS, settings.LoraSettings(setting.rank), 1e-4,
                                    torch.Generator().manual_seed(0))
            recipe = module("dreammatcher.training.recipe").SubjectRecipe(
                denoiser, pictures, settings.ObjectiveSettings(), unet=lora)
            module("dreammatcher.training.loop").train(recipe, settings.TrainingSettings(setting.steps, setting.batch),
                                                       after_step=lambda _: mark())
    return run


def diffusers_script(host: Host, setting: Setting) -> Run:
    """The step of train_dreambooth_lora.py with its parts: UNet2DConditionModel, peft's LoRA, DDPMScheduler, AdamW."""
    import diffusers
    import peft
    from comfy.utils import unet_to_diffusers

    latents, text = drawn(setting)
    model = random_unet(SD15, setting.width, torch.float32, torch.device("cpu"))
    with torch.inference_mode(False):
        unet: Any = diffusers.UNet2DConditionModel(
            cross_attention_dim=768, sample_size=setting.side,
            block_out_channels=[setting.width * factor for factor in SD15.multipliers])
        weights = model.model.diffusion_model.state_dict()
        names = unet_to_diffusers(model.model.model_config.unet_config)
        unet.load_state_dict({their: weights[ours] for their, ours in names.items() if ours in weights})
        del weights, model
        unet.requires_grad_(False).train()
        unet.add_adapter(peft.LoraConfig(r=setting.rank, lora_alpha=setting.rank, init_lora_weights="gaussian",
                                         target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        if setting.checkpointing:
            unet.enable_gradient_checkpointing()
    scheduler: Any = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")

    def run(mark: Callable[[], None]) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            learns = [value for value in unet.parameters() if value.requires_grad]
            optimiser = torch.optim.AdamW(learns, 1e-4, (0.9, 0.999), weight_decay=1e-2)
            for step in range(setting.steps):
                clean = latents[torch.arange(step, step + setting.batch) % PICTURES].clone()
                noise, timesteps = torch.randn_like(clean), torch.randint(1000, (setting.batch,))
                said = unet(scheduler.add_noise(clean, noise, timesteps), timesteps,
                            text.expand(setting.batch, -1, -1).clone(), return_dict=False)[0]
                F.mse_loss(said.float(), noise.float()).backward()
                torch.nn.utils.clip_grad_norm_(learns, 1.0)
                optimiser.step()
                optimiser.zero_grad()
                mark()
    return run


def hosts_own_node(host: Host, setting: Setting) -> Run:
    """ComfyUI's TrainLoraNode, which packaged hosts do not have."""
    import comfy_extras.nodes_train as theirs

    latents, text = drawn(setting)
    make_model = partial(random_unet, SD15, setting.width, torch.float32, torch.device("cpu"))
    model = make_model()
    model.cached_patcher_init = (lambda disable_dynamic: make_model(), ())  # how the node gets a copy: it reads the file again

    def run(mark: Callable[[], None]) -> None:
        class Marked(theirs.TrainSampler):
            def fwd_bwd(self, *given, **named):
                loss = super().fwd_bwd(*given, **named)
                mark()  # the optimiser's step belongs to the next one
                return loss

        original, theirs.TrainSampler = theirs.TrainSampler, Marked
        try:
            given = dict(
                model=model, latents={"samples": latents}, positive=[[text, {}]], batch_size=setting.batch, steps=setting.steps,
                grad_accumulation_steps=1, learning_rate=1e-4, rank=setting.rank, optimizer="AdamW", loss_function="MSE", seed=0,
                training_dtype="fp32", lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
                gradient_checkpointing=setting.checkpointing, checkpoint_depth=1, offloading=False, existing_lora="[None]",
                bucket_mode=False, bypass_mode=False)
            theirs.TrainLoraNode.execute(**{name: [value] for name, value in given.items()})
        finally:
            theirs.TrainSampler = original
    return run


ARMS = {"this pack": this_pack, "diffusers": diffusers_script, "TrainLoraNode": hosts_own_node}


def step_times(run: Run) -> list[float]:
    """Seconds of each step after the first, which warms up."""
    marks: list[float] = []
    run(lambda: marks.append(time.perf_counter()))
    return [after - before for before, after in zip(marks, marks[1:])]
