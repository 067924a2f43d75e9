"""From prompts to the arguments of the host's ``apply_model``."""

from __future__ import annotations

from typing import Any

import torch

from ...subject import Conditioning


def model_arguments(base: Any, conditioning: Conditioning, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keyword arguments of ``base.apply_model`` for one prompt, made by the host's own ``extra_conds``.

    An inpainting model is told that everything is to be painted, which makes it a plain one. Raises ValueError when the
    model needs a pooled text embedding and the prompt has none.
    """
    options = {} if conditioning.pooled is None else {"pooled_output": conditioning.pooled}
    if (getattr(base, "adm_channels", 0) or 0) > 0 and conditioning.pooled is None:
        raise ValueError("positive and negative: this model needs a pooled text embedding and these CONDITIONINGs have "
                         "none; encode the prompts with the model's own CLIP")
    if base.concat_keys:
        options["latent_image"] = torch.zeros_like(x)
    extra = type(base).extra_conds(
        base, cross_attn=conditioning.cross_attention, noise=x, device=x.device, prompt_type="positive",
        width=x.shape[3] * 8, height=x.shape[2] * 8, **options)
    return {name: value.process_cond(batch_size=x.shape[0], device=x.device, area=None).cond
            for name, value in extra.items()}


def context_of(arguments: tuple, named: dict[str, Any]) -> torch.Tensor | None:
    """The encoded prompts among the arguments of the host's ``apply_model``: x, t, c_concat, c_crossattn and others."""
    return named["c_crossattn"] if "c_crossattn" in named else next(iter(arguments[3:4]), None)
