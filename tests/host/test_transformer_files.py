"""Diffusion transformers that the host's own loader reads from a file, as small as it lets the layout of a family be.

It takes Z-Image for one of 3840 channels, Lumina 2 for one of 2304, and Wan's text for one of 4096, so that these have no small
file. For Z-Image its tables are told another width here, and everything else is the loader's.
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


@pytest.fixture(params=["Z-Image's own keys", "diffusers' keys", "inside of a checkpoint"])
def z_loaded(request, pack, monkeypatch):
    """Z-Image of 256 channels by the loader: it reads the blocks, the padding and the width of text from the weights."""
    import comfy.model_detection
    import comfy.sd
    import comfy.supported_models
    import comfy.utils

    bench = bench_of(pack, "Z-Image")
    config, network = TRANSFORMERS["Z-Image"][1], bench.model.model.diffusion_model
    detect = comfy.model_detection.detect_unet_config

    def narrow(weights, prefix, **named):
        """What the loader takes for granted at 3840 channels, at 256."""
        found = detect(weights, prefix, **named)
        if found is None:  # of diffusers' keys it knows nothing yet
            return None
        granted = ("n_heads", "n_kv_heads", "axes_dims", "axes_lens", "rope_theta", "ffn_dim_multiplier", "z_image_modulation",
                   "time_scale", "multiple_of", "n_refiner_layers")
        found.update({name: config[name] for name in granted})
        if f"{prefix}cap_pad_token" in weights:
            found["pad_tokens_multiple"] = 32
        return found

    monkeypatch.setattr(comfy.model_detection, "detect_unet_config", narrow)
    monkeypatch.setitem(comfy.supported_models.ZImage.unet_config, "dim", config["dim"])
    given = {name: value.clone() for name, value in network.state_dict().items()}
    if request.param == "diffusers' keys":
        names = comfy.utils.z_image_to_diffusers({**config, "n_layers": config["n_layers"]})
        written = {}
        for name, place in names.items():
            target, span = (place, None) if isinstance(place, str) else place
            if target in given:
                written[name] = given[target] if span is None else given[target].narrow(*span).clone()
        given = written
        assert any(name.endswith("attention.to_v.weight") for name in given)
    elif request.param == "inside of a checkpoint":
        given = {f"model.diffusion_model.{name}": value for name, value in given.items()}
    with torch.inference_mode():
        bench.model = comfy.sd.load_diffusion_model_state_dict(given, {"dtype": torch.float32})
    read = bench.model.model.diffusion_model
    assert read is not network and type(bench.model.model.model_config) is comfy.supported_models.ZImage
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in network.state_dict().items())
    backbone = pack.module("dreammatcher.host.model.backbone").backbone_of(bench.model.model)
    assert backbone == bench.backbone and backbone.multiple == 32
    return bench


def test_z_image_by_the_stock_loader_is_matched_exactly_and_off_leaves_every_bit(z_loaded):
    test_a_model_from_a_file_is_matched_exactly_and_off_leaves_every_bit(z_loaded)


class Packed(torch.Tensor):
    """A weight of 8 bits and a scale for each row that tells the shape of what it stands for, as those of GGUF files do."""

    @staticmethod
    def __new__(cls, values: torch.Tensor, scale: torch.Tensor):
        made_here = torch.Tensor._make_subclass(cls, values, False)
        made_here.scale = scale
        return made_here

    @staticmethod
    def of(weight: torch.Tensor) -> Packed:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return Packed((weight / scale).round().to(torch.int8), scale)

    def whole(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).float() * self.scale

    def clone(self, *_, **__):
        return self

    def detach(self):
        return self

    def to(self, *_, **__):
        return self


def operations() -> type:
    """Layers that make their weights whole when they run, and say nothing of them in their state, as GGUF's."""
    import comfy.ops

    class Operations(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
                torch.nn.Module.__init__(self)
                self.in_features, self.out_features, self.weight, self.bias = in_features, out_features, None, None

            def _load_from_state_dict(self, state_dict, prefix, *rest):
                self.weight = torch.nn.Parameter(state_dict[f"{prefix}weight"], requires_grad=False)
                bias = state_dict.get(f"{prefix}bias")
                self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

            def _save_to_state_dict(self, destination, prefix, keep_vars):
                destination[f"{prefix}weight"] = torch.zeros(self.weight.shape, device="meta")

            def forward(self, x, *_, **__):
                weight = self.weight.whole() if isinstance(self.weight, Packed) else self.weight
                return torch.nn.functional.linear(x, weight.to(x), None if self.bias is None else self.bias.to(x))

    return Operations


def test_weights_that_are_made_whole_when_they_are_used_are_matched_as_whole_ones_are(pack, monkeypatch):
    """The same numbers, once packed in a loader's own kind of layer, once as they are."""
    import comfy.sd

    entry, config, pooled = TRANSFORMERS["Flux.1"]
    monkeypatch.setitem(TRANSFORMERS, "Flux.1", (entry, {**config, **LAYOUTS["Flux.1"]}, pooled))
    bench = bench_of(pack, "Flux.1")
    given = bench.model.model.diffusion_model.state_dict()
    packed = {name: Packed.of(value) if value.ndim == 2 else value.clone() for name, value in given.items()}
    whole = {name: value.whole() if isinstance(value, Packed) else value.clone() for name, value in packed.items()}
    assert any(isinstance(value, Packed) for value in packed.values())
    pictures, identity = {}, pack.module("dreammatcher.host.model.identity").network_identity
    for name, weights, options in (("whole", whole, {}), ("packed", packed, {"custom_operations": operations()})):
        with torch.inference_mode():
            bench.model = comfy.sd.load_diffusion_model_state_dict(dict(weights), {"dtype": torch.float32, **options})
        test_a_model_from_a_file_is_matched_exactly_and_off_leaves_every_bit(bench)
        matched, trace = applied(bench, other_reference(bench))
        pictures[name] = drawn(matched, bench.longer, bench.negative, cfg=3.0)
        assert trace.layers and not trace.skipped and identity(bench.model) == identity(bench.model.clone())
    assert close(pictures["packed"], pictures["whole"], RUN)
    assert not close(pictures["packed"], drawn(bench.model, bench.longer, bench.negative, cfg=3.0), RUN)
