"""The noise process of a model: x at a noise level, and the way between predictions, clean pictures and noise.

Noise levels are the host's sigmas. Models that predict noise (EPS) or velocity (V, Salimans and Ho 2022) are sampled in the
variance-exploding form of Karras et al. 2022, x = x0 + sigma n, and see x / sqrt(1 + sigma^2), the latent of DDPM. Flow models
(CONST, Lipman et al. 2023; Esser et al. 2024) have x = (1 - sigma) x0 + sigma n and see it as it is. In both, dx / dsigma of the
probability flow is (x - x0) / sigma: the noise there, the flow n - x0 here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NoiseProcess:
    """x(sigma) = signal(sigma) x0 + sigma n."""

    name: str
    flow: bool = False  # the signal fades as the noise comes
    velocity: bool = False  # the network says v = sqrt(a) n - sqrt(1 - a) x0 in place of the noise

    def signal(self, sigma: float) -> float:
        """The share of the clean picture in x."""
        return 1.0 - sigma if self.flow else 1.0

    def spread(self, sigma: float) -> float:
        """x is this many times as large as what the network sees of it."""
        return 1.0 if self.flow else math.sqrt(1.0 + sigma * sigma)

    def at(self, clean: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """x(sigma) of a clean picture and its noise."""
        return (1.0 - sigma) * clean + sigma * noise if self.flow else clean + sigma * noise

    def clean(self, x: torch.Tensor, said: torch.Tensor, sigma: float) -> torch.Tensor:
        """x0, as the network says it of ``x``: by noise, velocity or flow."""
        if self.velocity:
            spread = self.spread(sigma)
            return x / spread**2 - said * (sigma / spread)
        return x - sigma * said

    def said(self, clean: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """The right answer of the network about x(sigma): the inverse of :meth:`clean`."""
        if self.flow:
            return noise - clean
        return (noise - sigma * clean) / self.spread(sigma) if self.velocity else noise

    def noise(self, clean: torch.Tensor, derivative: torch.Tensor) -> torch.Tensor:
        """The noise of x, of its clean picture and dx / dsigma."""
        return clean + derivative if self.flow else derivative

    def inversion_step(self, seen: torch.Tensor, derivative: torch.Tensor, sigma: float,
                       coming: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A step of inversion from ``sigma`` up to the ``coming`` one (Song et al. 2021, Eq. 13; an Euler step of the flow).

        ``seen`` is the latent as the network sees it at ``sigma``, ``derivative`` dx / dsigma. Returns the clean picture and the
        noise that they mean, and the latent as the network sees it at ``coming``.
        """
        clean = seen * self.spread(sigma) - sigma * derivative
        noise = self.noise(clean, derivative)
        return clean, noise, self.at(clean, noise, coming) / self.spread(coming)


EPS, V, CONST = NoiseProcess("EPS"), NoiseProcess("V", velocity=True), NoiseProcess("CONST", flow=True)
#: by their names in files
PROCESSES = {process.name: process for process in (EPS, V, CONST)}
