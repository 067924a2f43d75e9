"""ViCo through the host's UNet gives what the official code gives: every ``tests/fixtures/vico_*.safetensors`` there is."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from closeness import RUN, close
from safetensors import safe_open
from world import narrow_sd

FILES = sorted((Path(__file__).resolve().parents[1] / "fixtures").glob("vico_*.safetensors"))


def drawn(name: str, shape: torch.Size) -> torch.Tensor:
    """A weight by the rule in the fixtures' metadata."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1:
        return value / shape[1:].numel() ** 0.5
    return 1 + 0.1 * value if name.endswith(".weight") else 0.02 * value


class Official:
    """One fixture, and the host's UNet with its weights."""

    def __init__(self, pack, file: Path):
        with safe_open(file, "pt") as content:
            self.data = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  safe_open is no dict
            metadata = content.metadata()
        self.names = json.loads(metadata["gradient_norms"])
        config = json.loads(metadata["unet_config"])
        self.sites_module = pack.module("dreammatcher.host.vico.sites")
        self.changed = pack.module("dreammatcher.host.model.blocks").changed
        self.mask, self.loss = (pack.module(f"dreammatcher.vico.{name}") for name in ("mask", "loss"))
        self.base = narrow_sd(config).model
        unet = self.base.diffusion_model
        unet.load_state_dict({name: drawn(name, value.shape) for name, value in unet.state_dict().items()})
        self.sites = self.sites_module.blocks_of(self.base)
        made = pack.module("dreammatcher.vico.block")
        self.blocks = made.begun(self.sites_module.widths(self.base), torch.Generator())
        self.parameters = {f"{made.name_of(site)}.{name}": value for site, block in self.blocks.items()
                           for name, value in block.named_parameters()}
        for name, value in self.parameters.items():
            value.data = drawn(name, value.shape)

    def run(self, context: torch.Tensor, looking: bool = True):
        """Prediction, and at each site the maps of placeholder and end token and the mask."""
        data, unet = self.data, self.base.diffusion_model

        def call(x):
            return unet(x.clone(), data["timesteps"], context=context, transformer_options={"cond_or_uncond": [0]})

        if not looking:
            return call(data["x"])
        seen = self.sites_module.look(self.sites, lambda: call(data["reference"]))
        maps = {site: tuple(self.mask.column(one.attention, data[name][:, None]) for name in ("placeholder", "end"))
                for site, one in seen.items()}
        masks = {site: self.mask.subject_mask(placeholder) for site, (placeholder, _) in maps.items()}
        change = lambda site, states, _: self.blocks[site](states, seen[site].states, masks[site])  # noqa: E731
        with self.changed(self.sites, change):
            return call(data["x"]), maps, masks


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def official(request, pack):
    # outside of inference mode: the host's own modules are to have gradients here
    with torch.inference_mode(False), torch.enable_grad():
        yield Official(pack, request.param)


def test_there_are_fixtures_and_the_sites_are_the_official_ones(official):
    assert len(FILES) >= 2
    assert [site[1] for site in official.sites] == [4, 6, 8, 10]
    assert set(official.parameters) == set(official.names)


def test_the_output_with_and_without_image_attention_is_the_official_one(official):
    with torch.no_grad():
        output, _, _ = official.run(official.data["context"])
        plain = official.run(official.data["context"], looking=False)
    assert close(output, official.data["output"], RUN)
    assert close(plain[0], official.data["output_without_image_attention"], RUN)
    assert not torch.allclose(output, plain, atol=1e-2)


def test_attention_and_masks_are_the_official_ones(official):
    with torch.no_grad():
        _, maps, masks = official.run(official.data["context"])
    for site in official.sites:
        assert close(maps[site][0], official.data[f"site.{site[1]}.attention"], RUN)
        assert torch.equal(masks[site].float(), official.data[f"site.{site[1]}.mask"])


def test_loss_regularisation_and_gradients_are_the_official_ones(official):
    data, context = official.data, official.data["context"].clone().requires_grad_()
    layer_norms = official.base.diffusion_model
    from importlib import import_module

    hooks = import_module(official.sites_module.__name__.replace("vico.sites", "model.hooks"))
    with hooks.norms_keep_their_input(layer_norms):
        output, maps, _ = official.run(context)
        regularisation = official.loss.regularisation(list(maps.values()))
        loss = (output - data["noise"]).square().mean() + official.loss.WEIGHT * regularisation
        loss.backward()
    assert close(regularisation, data["regularisation"].squeeze(), RUN) and close(loss, data["loss"].squeeze(), RUN)

    def apart(result: torch.Tensor, wanted: torch.Tensor) -> float:
        return ((result - wanted).norm() / wanted.norm()).item()

    assert apart(context.grad, data["gradient.context"]) < 1e-4
    norms = torch.stack([official.parameters[name].grad.norm() for name in official.names])
    assert close(norms, data["gradient_norms"], RUN)
    checked = [name for name in data if name.startswith("gradient.output_blocks")]
    assert checked and all(apart(official.parameters[name.removeprefix("gradient.")].grad, data[name]) < 1e-4
                           for name in checked)
