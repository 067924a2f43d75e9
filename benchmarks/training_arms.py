"""The arms that ``make bench-training`` compares: one step of a LoRA on a UNet of real size, by this pack and by others.

Latents and the prompt's conditioning are made ahead in every arm, so the UNet's step alone is timed. Weights, picture size, batch
and rank are the same; the host's own node puts its LoRA on every layer and cannot be told otherwise, the other two on attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from harness.boot import Host

from .timing_model import SD15, SDXL, Clock, Family, random_unet

TOKENS, PICTURES = 77, 4
FAMILIES = {"SD1.5": SD15, "SDXL": SDXL}
#: side of the latent of each family's own pictures
SIDES = {"SD1.5": 64, "SDXL": 128}


@dataclass(frozen=True)
class Setting:
    """One setting in which all arms are compared."""

    side: int  # of the latent
    batch: int
    rank: int
    width: int  # base channels; 320 makes SD1.5's 860 M parameters and SDXL's 2.6 G
    steps: int
    checkpointing: bool = False
    family: str = "SD1.5"
    device: str = "cpu"
    bfloat16: bool = False  # of the model's weights and of what it computes; what learns is in float32

    @property
    def kind(self) -> Family:
        return FAMILIES[self.family]

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bfloat16 else torch.float32

    def unet(self) -> Any:
        """The host's MODEL, of random weights."""
        return random_unet(self.kind, self.width, self.dtype, torch.device(self.device))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False)


#: trains, calling what it is given after every step
Run = Callable[[Callable[[], None]], None]


def drawn(setting: Setting) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Latents [4, 4, h, w], a prompt [1, 77, D], and its pooled vector [1, P] where the family takes one."""
    generator, kind = torch.Generator().manual_seed(7), setting.kind
    latents = torch.randn(PICTURES, 4, setting.side, setting.side, generator=generator)
    text = torch.randn(1, TOKENS, kind.context, generator=generator)
    return latents, text, torch.randn(1, kind.pooled, generator=generator) if kind.pooled else None


def this_pack(host: Host, setting: Setting) -> Run:
    module = host.pack().module
    training, settings, data = (module(f"dreammatcher.training.{name}") for name in ("dreambooth", "settings", "data"))
    latents, text, pooled = drawn(setting)
    model = setting.unet()
    _, clip, _ = host.nodes["ToyboxLoader"]().load()
    Conditioning = module("dreammatcher.subject").Conditioning
    said = Conditioning(text, pooled).each(lambda value: value.to(model.load_device))

    HostDenoiser: Any = module("dreammatcher.host.training.model").HostDenoiser

    class Ahead(HostDenoiser):
        def encode(self, captions, weights=None, rows=None):
            return said.each(lambda value: value.expand(len(captions), *value.shape[1:]))

    denoiser = Ahead(model, clip, (setting.side, setting.side), checkpointing=setting.checkpointing)
    pictures = data.LatentSet(tuple(data.Prepared(latent[None], None, ("a sks dog",)) for latent in latents))

    def run(mark: Callable[[], None]) -> None:
        with torch.inference_mode(False), torch.enable_grad(), setting.autocast():
            lora = training.lora_of(denoiser.unet, training.UNET_TARGETS, settings.LoraSettings(setting.rank), 1e-4,
                                    torch.Generator().manual_seed(0))
            recipe = module("dreammatcher.training.recipe").SubjectRecipe(
                denoiser, pictures, settings.ObjectiveSettings(), unet=lora)
            recipe.learned.to(denoiser.device)
            module("dreammatcher.training.loop").train(recipe, settings.TrainingSettings(setting.steps, setting.batch),
                                                       after_step=lambda _: mark())
    return run


def diffusers_unet(setting: Setting) -> Any:
    """diffusers' model of the same weights."""
    import diffusers
    from comfy.utils import unet_to_diffusers

    kind = setting.kind
    widths = [setting.width * factor for factor in kind.multipliers]
    shape: dict[str, Any] = {"cross_attention_dim": kind.context, "sample_size": setting.side, "block_out_channels": widths}
    if kind.pooled:
        shape |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                  "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                  "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [max(1, width // 64) for width in widths],
                  "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                  "projection_class_embeddings_input_dim": kind.pooled + 6 * 256}
    unet: Any = diffusers.UNet2DConditionModel(**shape)
    model = setting.unet()
    weights, known = model.model.diffusion_model.state_dict(), unet.state_dict()
    names = unet_to_diffusers(model.model.model_config.unet_config)
    unet.load_state_dict({their: weights[ours] for their, ours in names.items() if their in known and ours in weights})
    return unet.to(setting.device, setting.dtype)


def diffusers_script(host: Host, setting: Setting) -> Run:
    """The step of train_dreambooth_lora.py with its parts: UNet2DConditionModel, peft's LoRA, DDPMScheduler, AdamW."""
    import diffusers
    import peft

    latents, text, pooled = (None if value is None else value.to(setting.device) for value in drawn(setting))
    assert latents is not None and text is not None
    with torch.inference_mode(False):
        unet = diffusers_unet(setting)
        unet.requires_grad_(False).train()
        unet.add_adapter(peft.LoraConfig(r=setting.rank, lora_alpha=setting.rank, init_lora_weights="gaussian",
                                         target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        learns = [value for value in unet.parameters() if value.requires_grad]
        for value in learns:
            value.data = value.data.float()
        if setting.checkpointing:
            unet.enable_gradient_checkpointing()
    scheduler: Any = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    sizes = torch.tensor([[8 * setting.side, 8 * setting.side, 0, 0, 8 * setting.side, 8 * setting.side]], device=setting.device)

    def run(mark: Callable[[], None]) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            optimiser = torch.optim.AdamW(learns, 1e-4, (0.9, 0.999), weight_decay=1e-2)
            for step in range(setting.steps):
                clean = latents[torch.arange(step, step + setting.batch) % PICTURES].clone()
                noise, timesteps = torch.randn_like(clean), torch.randint(1000, (setting.batch,), device=clean.device)
                beside = {} if pooled is None else {"added_cond_kwargs": {
                    "text_embeds": pooled.expand(setting.batch, -1).to(setting.dtype, copy=True),
                    "time_ids": sizes.expand(setting.batch, -1).to(setting.dtype)}}
                with setting.autocast():
                    said = unet(scheduler.add_noise(clean, noise, timesteps).to(setting.dtype), timesteps,
                                text.expand(setting.batch, -1, -1).to(setting.dtype, copy=True), return_dict=False, **beside)[0]
                F.mse_loss(said.float(), noise.float()).backward()
                torch.nn.utils.clip_grad_norm_(learns, 1.0)
                optimiser.step()
                optimiser.zero_grad()
                mark()
    return run


def hosts_own_node(host: Host, setting: Setting) -> Run:
    """ComfyUI's TrainLoraNode, which packaged hosts do not have."""
    import comfy_extras.nodes_train as theirs

    latents, text, pooled = drawn(setting)
    model = setting.unet()
    model.cached_patcher_init = (lambda disable_dynamic: setting.unet(), ())  # how the node gets a copy: it reads the file again

    def run(mark: Callable[[], None]) -> None:
        class Marked(theirs.TrainSampler):
            def fwd_bwd(self, *given, **named):
                loss = super().fwd_bwd(*given, **named)
                mark()  # the optimiser's step belongs to the next one
                return loss

        original, theirs.TrainSampler = theirs.TrainSampler, Marked
        try:
            given = dict(
                model=model, latents={"samples": latents}, positive=[[text, {} if pooled is None else {"pooled_output": pooled}]],
                batch_size=setting.batch, steps=setting.steps, grad_accumulation_steps=1, learning_rate=1e-4, rank=setting.rank,
                optimizer="AdamW", loss_function="MSE", seed=0, training_dtype="bf16" if setting.bfloat16 else "fp32",
                lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
                gradient_checkpointing=setting.checkpointing, checkpoint_depth=1, offloading=False, existing_lora="[None]",
                bucket_mode=False, bypass_mode=False)
            theirs.TrainLoraNode.execute(**{name: [value] for name, value in given.items()})
        finally:
            theirs.TrainSampler = original
    return run


ARMS = {"this pack": this_pack, "diffusers": diffusers_script, "TrainLoraNode": hosts_own_node}


def step_times(run: Run, device: str = "cpu") -> list[float]:
    """Seconds of each step after the first, which warms up; the work of the ``device`` included."""
    clock, marks = Clock(torch.device(device)), list[float]()
    run(lambda: marks.append(clock.now()))
    return [after - before for before, after in zip(marks, marks[1:])]
