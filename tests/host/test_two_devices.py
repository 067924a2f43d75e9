"""The text encoder on the processor while the UNet is on a card, as hosts with little memory have it.

torch follows shapes and devices of tensors without memory (FakeTensorMode) and refuses what a real card would: an operation on
tensors of two devices. The card is its device "meta", the only second one that every build of torch differentiates on.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = pytest.mark.usefixtures("as_in_a_graph")

CARD = torch.device("meta")


@pytest.fixture
def parts(pack):
    return lambda name: pack.module(f"dreammatcher.{name}")


def gradients(parts, denoiser, kind):
    """Devices of the text encoder's learning weights and of their gradients, after a loss of the UNet's context.

    They begin where a run has all that learns: on the UNet's device.
    """
    methods, settings, recipe_of = (parts(f"training.{name}") for name in ("dreambooth", "settings", "recipe"))
    with torch.inference_mode(False), torch.enable_grad():
        lora = settings.LoraSettings()
        text = {"LoRA": lambda: methods.lora_of(denoiser.text, methods.TEXT_TARGETS, lora, 1e-4, torch.Generator()),
                "full": lambda: methods.full_of({name: value for name, value in denoiser.text.items()
                                                 if name.endswith(methods.TEXT_TARGETS)}, 1e-4)}[kind]()
        recipe = recipe_of.SubjectRecipe(denoiser, None, settings.ObjectiveSettings(), text=text)
        with FakeTensorMode(allow_non_fake_inputs=True):
            for owner in recipe.learned.modules():  # as Module.to, which cannot exchange tensors without memory
                if isinstance(owner, torch.nn.ParameterDict):
                    owner.update({name: torch.nn.Parameter(torch.empty(value.shape, device=CARD))
                                  for name, value in owner.items()})
            there = copy.copy(denoiser)
            there.device = CARD
            seen = there.encode(["a photo of sks robot", "a photo of sks robot on grass"], text.weights(there.text))
            assert seen.cross_attention.device == CARD
            seen.cross_attention.square().mean().backward()
            return {name: (value.device, None if value.grad is None else value.grad.device)
                    for name, value in recipe.learned.named_parameters()}


@pytest.fixture
def denoiser(parts, fresh):
    return parts("host.training.model").HostDenoiser(fresh[0], fresh[1], (16, 16))


def test_the_trick_notices_what_a_card_would_refuse():
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(Exception, match="on the same device|different devices"):
        torch.nn.functional.linear(torch.ones(2, 2), torch.empty(2, 2, device=CARD))


@pytest.mark.parametrize("kind", ["LoRA", "full"])
def test_a_text_encoder_on_the_processor_learns_with_a_unet_on_the_card(parts, denoiser, kind):
    devices = gradients(parts, denoiser, kind)
    assert devices and all(name.startswith("text.") for name in devices)
    assert set(devices.values()) == {(CARD, CARD)}


def test_factors_of_another_device_or_precision_add_the_same(parts):
    low = parts("training.trainables").LowRank(torch.randn(2, 4), torch.randn(3, 2), 0.5)
    x = torch.randn(5, 4)
    assert torch.equal(low.added(x), torch.nn.functional.linear(torch.nn.functional.linear(x, low.down), 0.5 * low.up))
    assert low.added(x.bfloat16()).dtype == torch.bfloat16
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert low.added(torch.empty(5, 4, device=CARD)).device == CARD
