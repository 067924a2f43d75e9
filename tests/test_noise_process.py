"""Noise processes in closed form: predictions, clean pictures and noise lead to each other, and inversion leads back."""

from __future__ import annotations

import math

import pytest
import torch

from dreammatcher.backbones.process import CONST, EPS, NoiseProcess, V
from dreammatcher.matching.inversion import Trajectory, invert, psnr, reconstruct

PROCESSES = [EPS, V, CONST]
MEAN, DEVIATION = 0.3, 0.7


def normal(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=PROCESSES, ids=lambda process: process.name)
def process(request) -> NoiseProcess:
    return request.param


@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.95])
def test_what_the_network_should_say_leads_back_to_the_clean_picture(process, sigma):
    clean, noise = normal(0), normal(1)
    x = process.at(clean, noise, sigma)
    assert torch.allclose(process.clean(x, process.said(clean, noise, sigma), sigma), clean)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.95])
def test_the_derivative_is_that_of_x_by_sigma(process, sigma):
    clean, noise, step = normal(0), normal(1), 1e-6
    slope = (process.at(clean, noise, sigma + step) - process.at(clean, noise, sigma - step)) / (2 * step)
    derivative = (process.at(clean, noise, sigma) - clean) / sigma
    assert torch.allclose(derivative, slope, atol=1e-8)
    assert torch.allclose(process.noise(clean, derivative), noise)


def test_velocity_is_that_of_salimans_and_ho():
    """v = sqrt(a) n - sqrt(1 - a) x0 with a = 1 / (1 + sigma^2), and x0 = sqrt(a) z - sqrt(1 - a) v of DDPM's latent z."""
    clean, noise, sigma = normal(0), normal(1), 1.7
    a = 1 / (1 + sigma**2)
    v = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
    assert torch.allclose(V.said(clean, noise, sigma), v)
    z = V.at(clean, noise, sigma) / V.spread(sigma)
    assert torch.allclose(math.sqrt(a) * z - math.sqrt(1 - a) * v, clean)


def test_a_step_of_inversion_with_the_true_answer_stays_on_the_way(process):
    """A step leads to x at the coming sigma exactly if the network says the same clean picture and noise at both."""
    clean, noise = normal(0), normal(1)
    sigma, coming = 0.3, 0.6
    derivative = (process.at(clean, noise, sigma) - clean) / sigma
    step = process.inversion_step(process.at(clean, noise, sigma) / process.spread(sigma), derivative, sigma, coming)
    for value, wanted in zip(step, (clean, noise, process.at(clean, noise, coming) / process.spread(coming))):
        assert torch.allclose(value, wanted)


def gaussian_flow(process: NoiseProcess):
    """dx / dsigma of the probability flow where clean pictures are normal: E[x0 | x] is linear in x."""
    def derivative(x: torch.Tensor, sigma: float) -> torch.Tensor:
        signal = process.signal(sigma)
        variance = signal**2 * DEVIATION**2 + sigma**2
        clean = MEAN + signal * DEVIATION**2 / variance * (x - signal * MEAN)
        return (x - clean) / sigma
    return derivative


@pytest.mark.parametrize("steps, least", [(20, 20), (80, 31)])
def test_inversion_and_sampling_lead_back_to_the_picture_and_more_steps_nearer(process, steps, least):
    picture = MEAN + DEVIATION * normal(3).float()
    last = 0.98 if process.flow else 8.0
    sigmas = [last * (k / steps) ** 1.5 for k in range(1, steps + 1)]
    trajectory = invert(gaussian_flow(process), picture, sigmas, sigmas[0] / 4, process)
    assert trajectory.process is process and trajectory.clean.shape == (steps, 4, 8, 8)
    assert psnr(reconstruct(gaussian_flow(process), trajectory), picture) > least


def test_a_trajectory_lies_between_its_levels_in_clean_picture_and_noise(process):
    clean, noise = normal(0), normal(1)
    trajectory = Trajectory((0.2, 0.8), torch.cat((clean, clean + 1)), torch.cat((noise, noise)), process)
    assert torch.allclose(trajectory.at(0.2), process.at(clean, noise, 0.2))
    assert torch.allclose(trajectory.at(0.4), process.at(clean + 0.5, noise, 0.4))
    assert trajectory.on("cpu").process is process
