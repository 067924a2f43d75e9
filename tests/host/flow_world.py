"""Toybox-Z with random weights: Z-Image's stock class at the size of Toybox's autoencoder and text encoder; newer hosts alone."""

from __future__ import annotations

import pytest
from test_guidance import in_inference_mode
from world import randomised

#: families whose networks have gradients
LEARNING = ("Z-Image", "Lumina 2", "Flux.1", "Flux.1 schnell", "Flux.2", "Chroma", "Qwen-Image", "Krea 2", "Wan")


def small_z(pack):
    """A MODEL of two blocks with 4 x 16 x 16 latents, made in inference mode as loaders make them. Skips older hosts."""
    module = pack.module("toybox.transformer")
    try:
        module.host_class()
    except RuntimeError:
        pytest.skip("this host does not know Z-Image")
    return in_inference_mode(randomised(module.ToyboxZFamily({**module.CONFIG, "n_layers": 2})))
