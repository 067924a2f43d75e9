"""Noise levels of the host's model and what it predicts at them, and the kinds of models that learn here."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_sampling
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...training.objective import EPSILON, FLOW, VELOCITY
from ..model.backbone import BACKBONES, network_of
from ..text.towers import towers_of

#: how the host turns a prediction into a clean picture -> what it predicts
PREDICTIONS = {comfy.model_sampling.EPS.calculate_denoised: EPSILON,
               comfy.model_sampling.V_PREDICTION.calculate_denoised: VELOCITY}
#: the same of models whose noise is mixed in along a flow; hosts from before them have none
FLOWS = {one.calculate_denoised for one in (getattr(comfy.model_sampling, "CONST", None),) if one is not None}
UNETS, LEARNING = "SD1.x, SD2.x and SDXL", "Z-Image, Lumina 2, Flux, Chroma, Qwen-Image, Krea 2 and Wan"
#: the networks that the host computes with kernels which have no gradient, trained or not
NO_GRADIENT = ("Anima", "MiniTrainDIT")
#: networks that the pack matches alone
UNTAUGHT = {"OpenAISignatureMMDITWrapper": "SD3", "HiDreamImageTransformer2DModel": "HiDream"}


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of a model, all on the processor."""

    prediction: str  # as the objective knows it
    alpha_bars: torch.Tensor  # [T], the square of the clean picture's share in what the network sees
    times: torch.Tensor  # [T], as the network is told them


def is_transformer(model) -> bool:
    """True for the diffusion transformers that the pack knows, on a host that has them."""
    network = network_of(model.model)
    return type(network) in BACKBONES and not isinstance(network, UNetModel)


def schedule_of(model) -> Schedule:
    """The noise levels of a model. Raises ValueError, saying what to do, for models that cannot be taught here."""
    sampling = model.get_model_object("model_sampling")
    how, transformer = type(sampling).calculate_denoised, is_transformer(model)
    name = _name(model)
    if transformer and name in NO_GRADIENT:
        raise ValueError(f"model: no gradient passes through {name} (Anima and Cosmos-Predict2), since ComfyUI computes its "
                         f"attention with a kernel that has no derivative; teach one of {LEARNING}, or load a LoRA that was "
                         "trained elsewhere")
    if transformer and name in UNTAUGHT:
        raise ValueError(f"model: {UNTAUGHT[name]} is matched and not taught here; teach one of {LEARNING}")
    if transformer and (how not in FLOWS or not hasattr(sampling, "sigmas")):
        raise ValueError(f"model: {name} is taught by its flow, and this model's sampling is another "
                         f"({type(sampling).__name__}); take away the node that changed it")
    if not transformer and (how not in PREDICTIONS or not hasattr(sampling, "sigmas")):
        raise ValueError(f"model: training knows models that predict noise (EPS) or velocity (V_PREDICTION): {UNETS}, without "
                         f"LCM, x0 or EDM in ModelSamplingDiscrete{_also()}; this one predicts something else")
    with torch.inference_mode(False):
        sigmas = sampling.sigmas.detach().float().cpu().clone()
        alpha_bars = (1 - sigmas) ** 2 if transformer else 1 / (1 + sigmas**2)
        times = sampling.timestep(sampling.sigmas).detach().float().cpu().clone()
    return Schedule(FLOW if transformer else PREDICTIONS[how], alpha_bars, times)


def check_unet(model, method: str) -> None:
    """Raises ValueError for a transformer, for a ``method`` that works on a UNet's attention to the prompt."""
    if is_transformer(model):
        raise ValueError(f"model: {method} teaches a UNet's attention to the prompt, and {_name(model)} is a transformer; use "
                         f"DreamBooth (DreamMatcher) with kind LoRA, or a checkpoint of {UNETS}")


def check_attention_loss(model, loss: object) -> None:
    """Raises ValueError for a further ``loss`` of a UNet's attention to the prompt on a transformer."""
    if loss is not None and is_transformer(model):
        raise ValueError("attention_loss: it compares a UNet's attention to the prompt, and this model is a transformer; take "
                         "this input away")


def check_text(model, clip, learns: bool) -> None:
    """Raises ValueError where the text encoder ``learns``, beside a transformer, and is none of CLIP's."""
    if not (learns and is_transformer(model)):
        return
    try:
        towers_of(clip)
    except ValueError as error:
        names = ", ".join(clip.tokenize(""))
        raise ValueError(f"text_encoder: this model reads text with {names}, and only CLIP's text encoders learn here; turn it "
                         "off") from error


def _name(model) -> str:
    return type(network_of(model.model)).__name__


def _also() -> str:
    """The families that learn besides on this host."""
    return f", and flows: {LEARNING}" if len(BACKBONES) > 1 else ""
