"""``python -m toybox.making.train_edit``: makes an edit model of the shipped Toybox-Z. Its weights are not shipped.

It learns from pairs of pictures of one subject, of which one stands in the sequence as the host's ReferenceLatent puts it there,
and the loss is on the other alone. It needs what ``toybox.making.train_transformer`` needs, and resumes as that does, from
``edit.pt`` in ``TOYBOX_BUILD``.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from .dataset import BUILD
from .train import parts_of
from .train_transformer import TRANSFORMER_FILE, begun, export, open_inputs

EDIT_FILE = BUILD / "model_z_edit.safetensors"


@dataclass(frozen=True)
class Plan:
    """Pairs drawn, steps, pairs in a step, and the rate."""

    pairs: int
    steps: int
    batch: int
    rate: float


#: by kind of device: about an hour on one core
PLANS = {"cpu": Plan(pairs=8_192, steps=800, batch=8, rate=6e-4), "cuda": Plan(pairs=64_000, steps=3_000, batch=128, rate=1.2e-3)}


def draw_views(count: int, path: Path) -> np.ndarray:
    """Second views of the first ``count`` training pictures, uint8 [count, 128, 128, 3], kept in ``path``."""
    from .views import drawn_view

    if not path.exists():
        with multiprocessing.Pool(torch.get_num_threads()) as pool:
            np.save(path, np.stack(pool.map(drawn_view, range(count), chunksize=64)))
    return np.load(path, mmap_mode="c")[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=TRANSFORMER_FILE, help="the Toybox-Z to begin with")
    options, device, plan = begun(parser, PLANS, {
        "steps": "length of the schedule", "batch": "pairs in a step", "pairs": "how many pairs are learned from",
        "rate": "learning rate"}, EDIT_FILE)

    from toybox.host import UNET_PREFIX
    from toybox.int8 import dequantise
    from toybox.transformer import layers_of

    from . import material, train_flow, train_reference, views

    inputs = open_inputs(device)
    latents = inputs.latents(inputs.data.pictures[:plan.pairs], BUILD / "latents_z.pt")
    second = inputs.latents(draw_views(plan.pairs, BUILD / "views.npy"), BUILD / "latents_views.pt")
    weights = parts_of(dequantise(load_file(options.weights)), (UNET_PREFIX,))[UNET_PREFIX]
    denoiser = train_flow.FlowDenoiser(layers_of(weights), inputs.context, device)
    pictures = material.material(inputs.data, latents, (train_flow.SIDE,), inputs.words.empty, device)
    step = train_reference.train(denoiser, views.Views(pictures, second.to(device)), weights, BUILD, plan.steps, plan.batch,
                                 limit=1 if options.export_now else None, rate=plan.rate)
    export(denoiser.transformer, options.output, "toybox-z-edit-1", step, plan.batch)


if __name__ == "__main__":
    main()
