"""Diffusion transformers that the host's own loader reads from a file, as small as it lets the layout of a family be.

It takes Z-Image for one of 3840 channels, Lumina 2 for one of 2304, and Wan's text for one of 4096, so that these have no small
file.
"""

from __future__ import annotations

import pytest
import torch
from closeness import RUN, close
from safetensors.torch import save_file
from transformers_world import SIGMA, TRANSFORMERS, applied, bench_of, drawn, evaluated, made, other_reference, reference_of

#: what the loader takes for granted, where it is not what the small models of transformers_world have
LAYOUTS = {
    "Flux.1": {"hidden_size": 256, "num_heads": 2, "mlp_ratio": 4.0, "axes_dim": [16, 56, 56]},
    "Flux.2": {"hidden_size": 256, "num_heads": 2, "mlp_ratio": 3.0, "axes_dim": [32, 32, 32, 32], "theta": 2000},
}


@pytest.fixture(params=list(LAYOUTS))
def loaded(request, pack, tmp_path, monkeypatch):
    import comfy.sd

    entry, config, pooled = TRANSFORMERS[request.param]
    monkeypatch.setitem(TRANSFORMERS, request.param, (entry, {**config, **LAYOUTS[request.param]}, pooled))
    bench = bench_of(pack, request.param)
    network = bench.model.model.diffusion_model
    save_file({name: value.clone() for name, value in network.state_dict().items()}, tmp_path / "model.safetensors")
    with torch.inference_mode():
        bench.model = comfy.sd.load_diffusion_model(str(tmp_path / "model.safetensors"), {"dtype": torch.float32})
    read = bench.model.model.diffusion_model.state_dict()
    assert bench.model.model.diffusion_model is not network
    assert all(torch.equal(value, read[name]) for name, value in network.state_dict().items())
    again = pack.module("dreammatcher.host.model.backbone").backbone_of(bench.model.model)
    assert again == bench.backbone, "its blocks, their grid and its family are read from the weights"
    return bench


def test_a_model_from_a_file_is_matched_exactly_and_off_leaves_every_bit(loaded):
    clean, noise, x = made(loaded)
    patch = loaded.backbone.patch
    moved = [torch.roll(each, (patch, 2 * patch), (-2, -1)) for each in (clean, noise)]
    matched, trace = applied(loaded, reference_of(loaded, *moved, loaded.positive))
    evaluated(matched, loaded.positive, loaded.negative, [(x, SIGMA)] * 2)
    flow, (height, width) = trace.last().flow[0], loaded.backbone.grid(loaded.backbone.matched[0], x.shape[-2:])
    assert bool(((flow[0] - 2) % width == 0).all()) and bool(((flow[1] - 1) % height == 0).all())
    itself, trace = applied(loaded, reference_of(loaded, clean, noise, loaded.positive))
    plain, result = (evaluated(model, loaded.positive, loaded.negative, [(x, SIGMA)] * 2)[-1] for model in (loaded.model, itself))
    assert close(result, plain, RUN) and trace.layers and not trace.skipped
    off, _ = applied(loaded, other_reference(loaded), strength=0.0)
    assert torch.equal(*(drawn(model, loaded.longer, loaded.negative, cfg=3.0) for model in (loaded.model, off)))
