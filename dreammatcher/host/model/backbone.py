"""From the host's model to the backbone of its family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import comfy.model_sampling
from comfy.ldm.modules import attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...backbones import dit, unet
from ...backbones.process import CONST, EPS, NoiseProcess, V

#: a backbone of any family
AnyBackbone = unet.UNetBackbone | dit.DiTBackbone
#: transformers: the host's module and class -> what reads their blocks
TRANSFORMERS = (("lumina.model", "NextDiT", dit.next_dit), ("flux.model", "Flux", dit.flux), ("chroma.model", "Chroma", dit.flux),
                ("qwen_image.model", "QwenImageTransformer2DModel", dit.qwen_image), ("krea2.model", "SingleStreamDiT", dit.krea),
                ("cosmos.predict2", "MiniTrainDIT", dit.cosmos), ("anima.model", "Anima", dit.cosmos),
                ("wan.model", "WanModel", dit.wan), ("modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper", dit.mmdit),
                ("hidream.model", "HiDreamImageTransformer2DModel", dit.hidream))


def _known() -> dict[type, Callable[[Any, str], AnyBackbone]]:
    """UNets, and those transformers that the host has and lets us into."""
    known: dict[type, Callable[[Any, str], AnyBackbone]] = {UNetModel: unet.backbone_of}
    if not hasattr(attention, "wrap_attn"):  # a host from before the slot for attention, late in 2025
        return known
    for module, name, read in TRANSFORMERS:
        try:
            known[getattr(import_module(f"comfy.ldm.{module}"), name)] = read
        except (ImportError, AttributeError):
            continue
    return known


#: class of the host -> what reads its sites: (network, what it predicts) -> backbone
BACKBONES = _known()
#: families by the names that artists know them by
KNOWN_UNETS = "SD1.x, SD2.x or SDXL"
KNOWN = KNOWN_UNETS if len(BACKBONES) == 1 else (
    f"{KNOWN_UNETS}, Z-Image, Lumina 2, Flux, Chroma, Qwen-Image, Krea 2, Anima, Cosmos-Predict2, Wan, SD3 or HiDream")
#: the networks' name for the latents of other pictures
OTHERS = "ref_latents"
#: those that take other pictures into their sequence
EDITED = "Flux.1 Kontext, Flux.2, Qwen-Image-Edit and Z-Image Omni"
#: the host's types of models that make a picture of another one instead of noise
WITHOUT_NOISE = ("IMG_TO_IMG", "IMG_TO_IMG_FLOW")
#: how the host turns an answer of the network into a clean picture -> the process that this belongs to
PROCESSES = ((getattr(comfy.model_sampling, "CONST", None), CONST), (comfy.model_sampling.V_PREDICTION, V),
             (comfy.model_sampling.EPS, EPS))


def network_of(base: Any) -> Any:
    """The network of the host's BaseModel as it was before torch.compile."""
    network = getattr(base, "diffusion_model", base)
    return getattr(network, "_orig_mod", network)


def backbone_of(base: Any) -> AnyBackbone:
    """The backbone of the host's BaseModel.

    Raises ValueError, listing the families that are known, for a class of network that is none of them, for a network that has
    nothing to match, and for one that begins with no noise.
    """
    network = network_of(base)
    if getattr(getattr(base, "model_type", None), "name", "") in WITHOUT_NOISE:
        raise ValueError(f"model: {type(base.model_config).__name__} makes a picture of another one and begins with no noise, so "
                         f"it is not matched; use an {KNOWN} checkpoint")
    read = BACKBONES.get(type(network)) or (BACKBONES[UNetModel] if isinstance(network, UNetModel) else None)
    if read is None:
        reason = "and DreamMatcher works inside a UNet's self-attention" if len(BACKBONES) == 1 else \
            "nor a transformer that DreamMatcher knows"
        config = getattr(base, "model_config", None)
        if config is not None:
            reason = f"{reason}, so {type(config).__name__} is not matched"
        raise ValueError(f"model: {type(network).__name__} is not a UNet, {reason}; use an {KNOWN} checkpoint")
    return read(network, base.model_type.name)


def unet_backbone_of(base: Any) -> unet.UNetBackbone:
    """The backbone of a UNet. Raises ValueError as :func:`backbone_of`, and for every transformer."""
    backbone = backbone_of(base)
    if not isinstance(backbone, unet.UNetBackbone):
        raise ValueError(f"model: {type(network_of(base)).__name__} is not a UNet, and this works inside a UNet alone; use an "
                         f"{KNOWN_UNETS} checkpoint")
    return backbone


def edit_backbone_of(base: Any) -> dit.DiTBackbone:
    """The backbone of a transformer that takes other pictures into its sequence.

    Raises ValueError for every other model, and on a host that does not let us into transformers.
    """
    network = network_of(base)
    read = BACKBONES.get(type(network))
    backbone = read(network, base.model_type.name) if read is not None and takes_pictures(network) else None
    if isinstance(backbone, dit.DiTBackbone):
        return backbone
    if len(BACKBONES) == 1:
        raise ValueError(f"model: Lock (DreamMatcher) works on {EDITED}, in a ComfyUI of late 2025 or newer; this one is older, "
                         f"and the model is {type(network).__name__}")
    raise ValueError(f"model: {type(network).__name__} takes no reference picture into its sequence; Lock (DreamMatcher) works "
                     f"on {EDITED}. With another model use Apply (DreamMatcher)")


def takes_pictures(network: Any) -> bool:
    """True if a network's class takes the latents of other pictures beside the one that it makes."""
    forward = getattr(type(network), "_forward", None) or type(network).forward
    return OTHERS in inspect.signature(forward).parameters


def process_of(sampling: object) -> NoiseProcess:
    """The noise process of a model's ``model_sampling``; models that predict something else are sampled as those of noise are."""
    return next((process for known, process in PROCESSES if known is not None and isinstance(sampling, known)), EPS)
