"""Toybox-Z with random weights: Z-Image's stock class at the size of Toybox's autoencoder and text encoder; newer hosts alone."""

from __future__ import annotations

import pytest
from test_guidance import in_inference_mode
from world import randomised

#: families whose networks have gradients
LEARNING = ("Z-Image", "Lumina 2", "Flux.1", "Flux.1 schnell", "Flux.2", "Chroma", "Qwen-Image", "Krea 2", "Wan")


def toybox_transformer(pack):
    """Toybox's module of it. Skips the test where the host has not the class."""
    module = pack.module("toybox.transformer")
    try:
        module.host_class()
    except RuntimeError:
        pytest.skip("this host does not know Z-Image")
    return module


def small_z(pack):
    """A MODEL of two blocks with 4 x 16 x 16 latents, made in inference mode as loaders make them. Skips older hosts."""
    module = toybox_transformer(pack)
    return in_inference_mode(randomised(module.ToyboxZFamily({**module.CONFIG, "n_layers": 2})))


def learner(host, models: tuple, training_set):
    """Runs DreamBooth on (MODEL, CLIP, VAE); other nodes by their names."""
    def learned(node="DreamMatcherDreamBooth", **chosen):
        model, clip, vae = models
        given = dict(model=model, clip=clip, vae=vae, training_set=training_set, steps=2, rate=1e-3, seed=0)
        given |= {"kind": "LoRA", "rank": 2} if node == "DreamMatcherDreamBooth" else {}
        return host.nodes[node]().learn(**{**given, **chosen})
    return learned
