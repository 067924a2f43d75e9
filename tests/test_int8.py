"""Weights in eight bits: what comes back is what went in to half a step, and damaged files are named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from toybox.int8 import LARGEST, SCALE, dequantise, quantise


@given(st.integers(0, 10_000), st.floats(-6, 3), st.sampled_from([(5, 16), (3, 4, 3, 3), (1, 8)]))
def test_a_weight_comes_back_to_half_a_step_of_its_channel(seed, exponent, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    quantised = quantise({"w": weight})
    assert quantised["w"].dtype == torch.int8 and quantised["w" + SCALE].dtype == torch.float16
    error = (dequantise(quantised)["w"] - weight).flatten(1).abs().amax(1)
    top = weight.flatten(1).abs().amax(1)
    rounding = 2.0**-25 * LARGEST  # of the smallest numbers that half precision knows
    assert (error <= top / LARGEST * 0.5 + top * 2.0**-11 + rounding).all()


def test_channels_of_zeros_stay_zero_and_each_channel_has_its_own_scale():
    weight = torch.stack([torch.zeros(8), torch.full((8,), 1e-3), torch.full((8,), 50.0)])
    back = dequantise(quantise({"w": weight}))["w"]
    assert not back[0].any() and torch.allclose(back, weight, rtol=1e-3)


def test_vectors_and_thin_matrices_stay_in_half_precision(tmp_path):
    weights = {"bias": torch.tensor([0.5, -0.25]), "thin": torch.randn(4, 4).half().float(), "wide": torch.randn(4, 64)}
    save_file(quantise(weights), tmp_path / "weights.safetensors")
    back = dequantise(load_file(tmp_path / "weights.safetensors"))
    assert back.keys() == weights.keys() and all(value.dtype == torch.float32 for value in back.values())
    assert torch.equal(back["bias"], weights["bias"]) and torch.equal(back["thin"], weights["thin"])


def test_files_without_int8_weights_are_read_as_they_are():
    weights = {"w": torch.randn(3, 16).half(), "a.scale": torch.ones(3).half()}
    back = dequantise(weights)
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name].float()) for name in weights)


@pytest.mark.parametrize("scale, words", [(None, "no scales"), (torch.ones(2).half(), "2 scales")])
def test_a_weight_without_its_scales_is_named(scale, words):
    quantised = quantise({"unet.w": torch.randn(4, 16)})
    quantised.pop("unet.w" + SCALE) if scale is None else quantised.update({"unet.w" + SCALE: scale})
    with pytest.raises(ValueError, match=f"unet.w.*{words}"):
        dequantise(quantised)


def test_weights_that_half_precision_cannot_scale_are_refused():
    with pytest.raises(ValueError, match="huge"):
        quantise({"huge": torch.full((2, 16), 1e8 * LARGEST)})
