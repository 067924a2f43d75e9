"""From prompts to the arguments of the host's ``apply_model`` and of its network."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...sizes import single_frame
from ...subject import Conditioning
from .backbone import network_of

#: the encoded prompts among the arguments
PROMPT = "c_crossattn"
#: the scale of guidance that a distilled model is told
GUIDANCE = "guidance"
#: attention of the host that trains fast and with little memory; others are replaced by torch's while a model learns, where the
#: host allows it: some (sage, flash) have no gradient, some (basic, split, sub quadratic) keep every map for it
SPARING = ("attention_pytorch", "attention_xformers")


#: what transformers that read the pooled text embedding project it with
POOLED_LAYERS = ("vector_in", "clip_text_pooled_proj")
#: the same in those that do not run without it: HiDream
NEEDED = "p_embedder"


def frames(base: Any) -> bool:
    """True if a model's latents have an axis of frames, of which a picture has one: [B, C, 1, H, W]."""
    return getattr(base.latent_format, "latent_dimensions", 2) == 3


def takes_pooled(base: Any) -> bool:
    """True if a model reads the pooled text embedding. For one that does not, the host may leave anything in it: SD1.5's
    checkpoints have no weights for it, and what stands in memory takes their place."""
    return needs_pooled(base) or any(getattr(network_of(base), name, None) is not None for name in POOLED_LAYERS)


def needs_pooled(base: Any) -> bool:
    """True if a model does not run without the pooled text embedding."""
    return (getattr(base, "adm_channels", 0) or 0) > 0 or getattr(network_of(base), NEEDED, None) is not None


def model_arguments(base: Any, conditioning: Conditioning, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keyword arguments of ``base.apply_model`` for one prompt, made by the host's own ``extra_conds``.

    An inpainting model is told that everything is to be painted, which makes it a plain one. Raises ValueError when the
    model needs a pooled text embedding and the prompt has none.
    """
    options: dict[str, Any] = {} if conditioning.pooled is None else {"pooled_output": conditioning.pooled}
    if needs_pooled(base) and conditioning.pooled is None:
        raise ValueError("positive and negative: this model needs a pooled text embedding and these CONDITIONINGs have "
                         "none; encode the prompts with the model's own CLIP")
    if base.concat_keys:
        options["latent_image"] = torch.zeros_like(x)
    options.update({name: value.to(x.device) if value.ndim else value.item() for name, value in conditioning.others.items()})
    extra = type(base).extra_conds(
        base, cross_attn=conditioning.cross_attention, noise=x, device=x.device, prompt_type="positive",
        width=x.shape[-1] * 8, height=x.shape[-2] * 8, **options)
    return {name: value.process_cond(batch_size=x.shape[0], device=x.device, area=None).cond
            for name, value in extra.items()}


def context_of(arguments: tuple, named: dict[str, Any]) -> torch.Tensor | None:
    """The encoded prompts among the arguments of the host's ``apply_model``: x, t, c_concat, c_crossattn and others."""
    return named[PROMPT] if PROMPT in named else next(iter(arguments[3:4]), None)


def batch_arguments(base: Any, conditioning: Conditioning, x: torch.Tensor) -> dict[str, Any]:
    """:func:`model_arguments` of a batch whose prompts [B, T, D] are pictures' own.

    The scale of guidance that Flux is told is 1, as its trainers have it (diffusers, README_flux.md).
    """
    arguments: dict[str, Any] = model_arguments(base, conditioning, x)
    if isinstance(network_of(base), UNetModel):
        arguments[PROMPT] = conditioning.cross_attention
    if told_guidance(base) and GUIDANCE in arguments:
        arguments[GUIDANCE] = torch.ones_like(arguments[GUIDANCE])
    return arguments


def told_guidance(base: Any) -> bool:
    """True for a distilled model that is told a scale of guidance and draws without a second prompt: Flux.1 dev and Flux.2."""
    return bool(getattr(getattr(network_of(base), "params", None), "guidance_embed", False))


def with_frames(base: Any, x: torch.Tensor) -> torch.Tensor:
    """A latent [B, C, H, W] in the model's form: with one frame, [B, C, 1, H, W], where its latents have frames."""
    return x.unsqueeze(2) if frames(base) and x.ndim == 4 else x


def network_call(base: Any, noisy: torch.Tensor, times: torch.Tensor, arguments: dict[str, torch.Tensor],
                 options: dict[str, Any]) -> torch.Tensor:
    """The network's own output for ``noisy`` [B, C, h, w], in the scale in which it sees it, at ``times`` [B]; float32.

    A model whose latents have frames sees one.
    """
    others = {name: value for name, value in arguments.items() if name not in ("c_concat", PROMPT)}
    dtype = base.manual_cast_dtype or base.get_dtype()
    concat = arguments.get("c_concat")
    x = with_frames(base, noisy)
    x = x if concat is None else torch.cat([x, concat.to(noisy)], 1)
    others = {name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
              for name, value in others.items()}
    options = {"cond_or_uncond": [0], "sigmas": times, "patches": {}, **options}
    if attention.optimized_attention.__name__ not in SPARING:
        options["optimized_attention_override"] = lambda _, *given, **named: attention.attention_pytorch(*given, **named)
    said = base.diffusion_model(x.to(dtype), times, context=arguments[PROMPT].to(dtype), transformer_options=options,
                                **others).float()
    return single_frame(said) if noisy.ndim == 4 else said
