"""``python -m toybox.making.train [--steps N]``: trains autoencoder, text encoder and UNet and writes toybox/model.safetensors.

Each part resumes from its checkpoint in ``TOYBOX_BUILD``. ``--export-now`` writes the model from the latest checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from harness.library import use_library

from ..vocab import TOKENIZER_DIR
from .attention import attention
from .dataset import BUILD, open_dataset
from .train_autoencoder import CROP_STEPS

MODEL_FILE = TOKENIZER_DIR.with_name("model.safetensors")
log = logging.getLogger("toybox")


def parts_of(weights: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts by prefix, with the prefix taken off."""
    return {prefix: {name[len(prefix):]: value for name, value in weights.items() if name.startswith(prefix)}
            for prefix in prefixes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24_000, help="length of the denoiser's schedule")
    parser.add_argument("--pictures", type=int, default=48_000, help="pictures the denoiser learns from")
    parser.add_argument("--crop-steps", type=int, default=CROP_STEPS, help="length of the autoencoder's schedule")
    parser.add_argument("--earlier", type=Path, help="a Toybox file to begin with instead of random weights")
    parser.add_argument("--export-now", action="store_true")
    parser.add_argument("--output", type=Path, default=MODEL_FILE)
    options = parser.parse_args()
    use_library(BUILD / "host", "--use-pytorch-cross-attention")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    torch.manual_seed(0)

    import comfy.ldm.modules.attention
    import comfy.taesd.taesd

    from toybox import host as toybox
    from toybox.int8 import dequantise, quantise

    from . import train_autoencoder, train_diffusion

    comfy.ldm.modules.attention.optimized_attention = attention  # this process only trains
    data = open_dataset()
    text_prefix = toybox.CLIP_PREFIX + "clip_l.transformer."
    earlier = options.earlier and parts_of(dequantise(load_file(options.earlier)),
                                           (toybox.UNET_PREFIX, text_prefix, toybox.VAE_PREFIX))
    done = BUILD / "autoencoder.pt"
    narrow = train_autoencoder.Autoencoder()
    if done.exists():
        narrow.load_state_dict(torch.load(done, weights_only=True))
    else:
        narrow = train_autoencoder.train(data, BUILD, earlier and train_autoencoder.narrowed(earlier[toybox.VAE_PREFIX]),
                                         options.crop_steps)
        torch.save(narrow.state_dict(), done)
    vae = comfy.taesd.taesd.TAESD()
    train_autoencoder.widen(narrow, vae)
    log.info("autoencoder: mean absolute error %.4f", train_autoencoder.reconstruction_error(vae, data))

    latent_file = BUILD / "latents.pt"
    if not latent_file.exists():
        torch.save(train_autoencoder.encode(narrow, data, min(options.pictures, len(data))), latent_file)
    latents = torch.load(latent_file, weights_only=True)

    base = toybox.unet_model()
    clip = toybox.build_clip(TOKENIZER_DIR)
    denoiser = train_diffusion.Denoiser(base.diffusion_model, clip.cond_stage_model.clip_l.transformer, clip.tokenize)
    denoiser.requires_grad_(True)
    sigmas = base.model_sampling.sigmas
    step = train_diffusion.train(denoiser, latents, data, 1 / (1 + sigmas**2), BUILD, options.steps,
                                 limit=1 if options.export_now else None,
                                 earlier=earlier and (earlier[toybox.UNET_PREFIX], earlier[text_prefix]))

    parts = {toybox.UNET_PREFIX: base.diffusion_model, toybox.VAE_PREFIX: vae, text_prefix: denoiser.text}
    weights = {prefix + key: value.detach() for prefix, module in parts.items() for key, value in module.state_dict().items()}
    save_file(quantise(weights), options.output, metadata={"format": "toybox-2", "denoiser_steps": str(step)})
    log.info("wrote %s after %d steps", options.output, step)


if __name__ == "__main__":
    main()
