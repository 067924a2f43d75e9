"""``python -m toybox.making.train_transformer``: trains Toybox-Z and writes toybox/model_z.safetensors.

Text encoder and autoencoder are those of toybox/model.safetensors. It needs a ComfyUI that knows Z-Image (COMFYUI_PATH) and the
pictures of ``python -m toybox.making.render``, and uses a CUDA device if there is one. It resumes from its checkpoint in
``TOYBOX_BUILD``; ``--export-now`` writes the model from the latest checkpoint. ``--steps`` may be raised until the rate falls.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from harness.library import use_library

from ..vocab import TOKENIZER_DIR
from .attention import attention
from .captions import Captions
from .dataset import BUILD, Dataset, open_dataset
from .train import MODEL_FILE, load, parts_of

log = logging.getLogger("toybox")
if TYPE_CHECKING:
    from _typeshed import DataclassInstance
P = TypeVar("P", bound="DataclassInstance")  # a plan

TRANSFORMER_FILE = MODEL_FILE.with_name("model_z.safetensors")
#: pictures between two writes of their latents
ENCODED_AT_ONCE = 2048


@dataclass(frozen=True)
class Plan:
    """Blocks of the transformer, pictures drawn, steps and pictures in a step."""

    layers: int
    pictures: int
    steps: int
    batch: int


#: by kind of device
PLANS = {"cpu": Plan(layers=8, pictures=48_000, steps=6_000, batch=32),
         "cuda": Plan(layers=10, pictures=96_000, steps=9_000, batch=128)}


@torch.no_grad()
def encode_captions(text: torch.nn.Module, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Every caption as CLIPTextEncode makes it, float16 [N, 77, 96], from token numbers [N, 77] and places of end tokens [N]."""
    from toybox.host import zero_padding

    return torch.cat([zero_padding(text(rows)[0], at).half() for rows, at in zip(tokens.split(512), ends.split(512))])


def encode_pictures(encode: Callable[[torch.Tensor], torch.Tensor], pictures: np.ndarray, path: Path) -> torch.Tensor:
    """Latents float16 [N, 4, 16, 16] of uint8 [N, 128, 128, 3], kept in ``path`` part by part: a run that is cut off goes on."""
    latents = torch.load(path, weights_only=True) if path.exists() else torch.empty(0, 4, 16, 16, dtype=torch.float16)
    while len(latents) < len(pictures):
        latents = torch.cat([latents, encode(torch.from_numpy(pictures[len(latents):len(latents) + ENCODED_AT_ONCE])).cpu()])
        torch.save(latents, path)
        log.info("latents of %d of %d pictures", len(latents), len(pictures))
    return latents[:len(pictures)]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Pictures, autoencoder and encoded captions for any training of a transformer."""

    data: Dataset
    vae: torch.nn.Module
    words: Captions
    context: torch.Tensor  # float16 [captions, 77, 96]
    device: torch.device

    def latents(self, pictures: np.ndarray, path: Path) -> torch.Tensor:
        """Latents of uint8 [N, 128, 128, 3], kept in ``path``."""
        from .train_autoencoder import encode

        return encode_pictures(lambda part: encode(self.vae, part), pictures, path)


def open_inputs(device: torch.device) -> Inputs:
    """Pictures, autoencoder and encoded captions on ``device``. This process only trains from now on."""
    import comfy.ldm.lumina.model
    import comfy.model_management
    import comfy.taesd.taesd

    from toybox import host as toybox
    from toybox.int8 import dequantise

    comfy.model_management.in_training = True  # the host's fused norm and rotation has no gradient
    if device.type == "cpu":
        comfy.ldm.lumina.model.optimized_attention_masked = attention
    text_prefix = toybox.CLIP_PREFIX + "clip_l.transformer."
    shipped = parts_of(dequantise(load_file(MODEL_FILE)), (text_prefix, toybox.VAE_PREFIX))
    vae = comfy.taesd.taesd.TAESD().to(device).requires_grad_(False)
    load(vae, shipped[toybox.VAE_PREFIX])
    clip = toybox.build_clip(TOKENIZER_DIR)
    words = Captions(clip.tokenize, device)
    text = clip.cond_stage_model.clip_l.transformer.float().to(device)
    load(text, shipped[text_prefix])
    return Inputs(open_dataset(), vae, words, encode_captions(text, words.tokens, words.ends), device)


def export(transformer: torch.nn.Module, path: Path, kind: str, step: int, batch: int) -> None:
    """Writes the weights to ``path`` as ToyboxLoader reads them."""
    from toybox.host import UNET_PREFIX
    from toybox.int8 import quantise

    weights = {UNET_PREFIX + key: value.detach().cpu() for key, value in transformer.state_dict().items()}
    save_file(quantise(weights), path, metadata={"format": kind, "steps": str(step), "batch": str(batch)})
    log.info("wrote %s after %d steps of %d pictures", path, step, batch)


def training_device() -> torch.device:
    """Starts the host and the log of a training, and chooses its device."""
    use_library(BUILD / "host", "--use-pytorch-cross-attention")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def begun(parser: argparse.ArgumentParser, plans: Mapping[str, P], texts: Mapping[str, str],
          output: Path) -> tuple[argparse.Namespace, torch.device, P]:
    """The options of a training's command, its device, and that device's plan with what the options change.

    ``texts`` say what the fields of a plan are; ``output`` is the file that is written without another name.
    """
    for name, text in texts.items():
        parser.add_argument(f"--{name}", type=type(getattr(plans["cpu"], name)), help=text)
    parser.add_argument("--export-now", action="store_true")
    parser.add_argument("--output", type=Path, default=output)
    options = parser.parse_args()
    device = training_device()
    chosen: dict[str, Any] = {name: value for name in texts if (value := getattr(options, name))}
    return options, device, replace(plans[device.type], **chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options, device, plan = begun(parser, PLANS, {
        "steps": "length of the schedule", "layers": "blocks of the transformer", "batch": "pictures in a step",
        "pictures": "how many of the drawn pictures are learned from"}, TRANSFORMER_FILE)

    from . import material, train_flow

    inputs = open_inputs(device)
    latents = inputs.latents(inputs.data.pictures[:plan.pictures], BUILD / "latents_z.pt")
    denoiser = train_flow.FlowDenoiser(plan.layers, inputs.context, device)
    learned_from = material.material(inputs.data, latents, (train_flow.SIDE,), inputs.words.empty, device)
    step = train_flow.train(denoiser, learned_from, BUILD, plan.steps, plan.batch, limit=1 if options.export_now else None)
    export(denoiser.transformer, options.output, "toybox-z-1", step, plan.batch)


if __name__ == "__main__":
    main()
