"""``python -m toybox.making.train``: trains autoencoder, text encoder and UNet and writes toybox/model.safetensors.

It uses a CUDA device if there is one. Each part resumes from its checkpoint in ``TOYBOX_BUILD``; ``--export-now`` writes the
model from the latest checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from harness.library import use_library

from ..vocab import TOKENIZER_DIR
from .attention import attention
from .dataset import BUILD, open_dataset
from .train_autoencoder import AutoencoderSteps

MODEL_FILE = TOKENIZER_DIR.with_name("model.safetensors")
log = logging.getLogger("toybox")


@dataclass(frozen=True)
class Plan:
    """Sizes of a training: its pictures, its steps, and the pictures in a step."""

    pictures: int
    autoencoder: AutoencoderSteps
    steps: int
    batch: int

    def shortened(self, by: int) -> Plan:
        autoencoder = replace(self.autoencoder, crop_steps=self.autoencoder.crop_steps // by,
                              whole_steps=self.autoencoder.whole_steps // by)
        return replace(self, autoencoder=autoencoder, steps=self.steps // by)


#: by kind of device: some eight hours on two cores, seven minutes on an H200, where the shipped weights were made
PLANS = {"cpu": Plan(48_000, AutoencoderSteps(crop_steps=7_000, crops=12, whole_steps=2_000, wholes=4), steps=24_000, batch=24),
         "cuda": Plan(96_000, AutoencoderSteps(crop_steps=4_000, crops=48, whole_steps=2_000, wholes=16), steps=13_000, batch=96)}


def parts_of(weights: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts by prefix, with the prefix taken off."""
    return {prefix: {name[len(prefix):]: value for name, value in weights.items() if name.startswith(prefix)}
            for prefix in prefixes}


def load(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Loads ``weights``; what newer hosts added to a module, as TAESD's shift, keeps its value."""
    module.load_state_dict({**module.state_dict(), **weights})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="length of the denoiser's schedule")
    parser.add_argument("--earlier", type=Path, help="a Toybox file to begin with instead of random weights")
    parser.add_argument("--shorter", type=int, default=1, metavar="N", help="an N-th of every schedule, to see that it runs")
    parser.add_argument("--autoencoder-only", action="store_true")
    parser.add_argument("--export-now", action="store_true")
    parser.add_argument("--output", type=Path, default=MODEL_FILE)
    options = parser.parse_args()
    use_library(BUILD / "host", "--use-pytorch-cross-attention")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = PLANS[device.type].shortened(options.shorter)
    torch.backends.cudnn.benchmark = True

    import comfy.ldm.modules.attention
    import comfy.taesd.taesd

    from toybox import host as toybox
    from toybox.int8 import dequantise, quantise

    from . import captions, material, train_autoencoder, train_diffusion

    if device.type == "cpu":  # this process only trains
        comfy.ldm.modules.attention.optimized_attention = attention
    data = open_dataset()
    pictures = torch.from_numpy(data.pictures[:plan.pictures]).to(device)
    text_prefix = toybox.CLIP_PREFIX + "clip_l.transformer."
    earlier = options.earlier and parts_of(dequantise(load_file(options.earlier)),
                                           (toybox.UNET_PREFIX, text_prefix, toybox.VAE_PREFIX))
    done = BUILD / "autoencoder.pt"
    vae = comfy.taesd.taesd.TAESD().to(device).requires_grad_(True)
    if done.exists():
        load(vae, torch.load(done, weights_only=True))
    else:
        if earlier:
            load(vae, earlier[toybox.VAE_PREFIX])
        train_autoencoder.train(vae, pictures, BUILD, plan.autoencoder, fresh=not earlier)
        torch.save(vae.state_dict(), done)
    log.info("autoencoder: mean absolute error %.4f", train_autoencoder.reconstruction_error(vae, pictures[:200]))
    if options.autoencoder_only:
        return

    latent_file = BUILD / "latents.pt"
    if not latent_file.exists():
        torch.save(train_autoencoder.encode(vae, pictures).cpu(), latent_file)
    latents = torch.load(latent_file, weights_only=True)
    del pictures

    base = toybox.unet_model()
    clip = toybox.build_clip(TOKENIZER_DIR)
    words = captions.Captions(clip.tokenize, device)
    denoiser = train_diffusion.Denoiser(base.diffusion_model, clip.cond_stage_model.clip_l.transformer, words)
    denoiser.requires_grad_(True).to(device)
    alphas = (1 / (1 + base.model_sampling.sigmas**2)).to(device)
    step = train_diffusion.train(
        denoiser, material.material(data, latents, train_diffusion.PART_BLOCKS, words.empty, device), alphas, BUILD,
        options.steps or plan.steps, plan.batch, limit=1 if options.export_now else None,
        earlier=(earlier[toybox.UNET_PREFIX], earlier[text_prefix]) if earlier else None)

    parts = {toybox.UNET_PREFIX: base.diffusion_model, toybox.VAE_PREFIX: vae, text_prefix: denoiser.text}
    weights = {prefix + key: value.detach().cpu()
               for prefix, module in parts.items() for key, value in module.state_dict().items()}
    save_file(quantise(weights), options.output, metadata={"format": "toybox-2", "denoiser_steps": str(step)})
    log.info("wrote %s after %d steps", options.output, step)


if __name__ == "__main__":
    main()
