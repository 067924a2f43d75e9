"""The objective along a flow: x = (1 - s) x0 + s n, of which a model says n - x0 (Lipman et al. 2023; Esser et al. 2024)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_training import Linear, normal, recipe, seeded

from dreammatcher.backbones.dit import FEED_FORWARD, PROJECTIONS
from dreammatcher.backbones.process import CONST
from dreammatcher.subject import Conditioning
from dreammatcher.training import objective
from dreammatcher.training.details import HUBER, Details, Layers, Noise, Uses
from dreammatcher.training.dreambooth import transformer_targets, unet_targets
from dreammatcher.training.objective import FLOW
from dreammatcher.training.samples import CFG, FLOW_CFG, STEPS, clean_estimate, sample

pytestmark = pytest.mark.usefixtures("gradients")

SIGMAS = torch.tensor([0.001, 0.3, 0.9, 1.0])


def test_noise_is_mixed_in_along_the_line_that_the_process_of_sampling_has():
    clean, noise = normal(4, 2, 8, 8), normal(4, 2, 8, 8, seed=1)
    noisy = objective.add_noise(clean, noise, (1 - SIGMAS) ** 2, FLOW)
    for row, sigma in enumerate(SIGMAS.tolist()):
        assert torch.allclose(noisy[row], CONST.at(clean[row], noise[row], sigma), atol=1e-6)
    wanted = objective.target(FLOW, clean, noise, (1 - SIGMAS) ** 2)
    assert torch.equal(wanted, noise - clean)
    found = clean_estimate(FLOW, noisy, wanted, (1 - SIGMAS) ** 2)
    assert all(torch.allclose(one, known, atol=1e-5) for one, known in zip(found, (clean, noise)))


def test_weights_are_those_of_the_clean_pictures_error():
    """min(SNR, gamma) of it, which is s times that of the flow; with a large gamma nothing but the picture's share is left."""
    snr = ((1 - SIGMAS) / SIGMAS) ** 2
    weights = objective.min_snr_weights((1 - SIGMAS) ** 2, 5.0, FLOW)
    assert torch.allclose(weights, snr.clamp(max=5) * SIGMAS ** 2, atol=1e-6)
    assert torch.allclose(objective.min_snr_weights((1 - SIGMAS) ** 2, 1e9, FLOW), (1 - SIGMAS) ** 2)


def test_huber_thresholds_follow_the_ratio_of_noise_to_picture():
    chosen, ratio = Noise(loss=HUBER, huber_c=0.2), SIGMAS[:3] / (1 - SIGMAS[:3])
    found = objective.huber_thresholds(chosen, (1 - SIGMAS) ** 2, torch.arange(4), 4, FLOW)
    assert torch.allclose(found[:3], 0.8 / (1 + ratio) ** 2 + 0.2, atol=1e-5) and torch.isclose(found[3], torch.tensor(0.2))


@pytest.mark.parametrize("prior", [True, False])
def test_the_loss_is_that_of_the_scripts(prior):
    model = Linear(FLOW)
    flow = recipe("full", model=model, prior=prior, prior_weight=0.3)
    loss = flow.loss(2, seeded(7))
    drawn = seeded(7)
    batches = [one.draw(2, drawn) for one in (flow.subject_set, *([flow.prior] if prior else []))]
    latents, captions = torch.cat([one.latents for one in batches]), sum((one.captions for one in batches), [])
    steps = torch.randint(len(model.alpha_bars), (len(latents),), generator=drawn)
    noise, sigmas = torch.randn(latents.shape, generator=drawn), (1 - model.alpha_bars[steps].sqrt()).view(-1, 1, 1, 1)
    said = model.predict((1 - sigmas) * latents + sigmas * noise, steps, model.encode(captions), {})
    errors = (said - (noise - latents)).square().flatten(1).mean(1)
    assert torch.isclose(loss, errors[:2].mean() + (0.3 * errors[2:].mean() if prior else 0))


def test_a_sample_is_an_euler_run_of_the_guided_flow():
    class Straight(Linear):
        """A model that knows one picture and one noise, whatever it is shown."""

        def predict(self, noisy, timesteps, conditioning, weights):
            told = float(conditioning.cross_attention.abs().sum() > 0)
            return torch.full_like(noisy, 2.0 + told)

    model = Straight(FLOW, alpha_bars=torch.linspace(0.999, 0.0, 100) ** 2)
    start = torch.randn(1, 4, 4, 4, generator=seeded(3))
    drawn = sample(recipe(model=model), "a photo of a sks dog", (4, 4, 4), 3)
    assert torch.allclose(drawn, start - (2 + FLOW_CFG), atol=1e-4), "from s = 1 to s = 0 along a constant flow"
    assert STEPS > 1 and CFG > FLOW_CFG


def test_prompts_of_several_lengths_come_back_in_their_rows():
    prompts = [Conditioning(torch.full((1, length, 2), float(length)), torch.full((1, 3), float(length)))
               for length in (4, 2, 4, 3)]
    batch = Conditioning.filled_up(prompts)
    assert batch.cross_attention.shape == (4, 4, 2) and batch.lengths == (4, 2, 4, 3) and batch.each(torch.neg).lengths
    seen = []

    def call(rows: torch.Tensor, part: Conditioning) -> torch.Tensor:
        seen.append((rows.tolist(), part.cross_attention.shape[1]))
        return part.cross_attention.mean((1, 2)) + 10 * part.pooled[:, 0]

    assert batch.in_parts(call).tolist() == [44.0, 22.0, 44.0, 33.0] and seen == [([1], 2), ([3], 3), ([0, 2], 4)]
    assert not Conditioning.filled_up(prompts[:1]).lengths, "one length needs no parts"


def test_feed_forward_is_taught_in_transformers_unless_it_is_turned_off():
    plain, off, on = Details(), Details(layers=Layers(feed_forward=False)), Details(layers=Layers(feed_forward=True))
    assert plain.on(True) == on and plain.on(False) == off and off.on(True) == off and on.on(False) == on
    assert plain.layers.usual and off.layers.usual and not on.layers.usual
    Uses("Textual Inversion").check(off)
    with pytest.raises(ValueError, match="^attention, feed_forward"):
        Uses("Textual Inversion").check(on)
    weights = {name: normal(2, 2) for name in ("layers.0.attention.qkv.weight", "layers.0.feed_forward.w1.weight", "norm.weight",
                                               "layers.0.attention.q_norm.weight", "t_embedder.mlp.0.weight")}
    assert transformer_targets(weights, plain.on(True).layers) == tuple(weights)[:2]
    assert transformer_targets(weights, off.layers) == tuple(weights)[:1]
    assert transformer_targets(weights, replace(on.layers, attention=False)) == tuple(weights)[1:2]
    with pytest.raises(ValueError, match="^model: none of its layers"):
        transformer_targets({"blocks.0.mixer.weight": normal(2, 2)}, on.layers)
    unet = ("input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", "input_blocks.1.1.transformer_blocks.0.ff.net.2.weight")
    assert unet_targets(unet, Layers()) == unet[:1], "a UNet's default is as it was"
    assert all(name.endswith(".weight") for name in (*PROJECTIONS, *FEED_FORWARD))
