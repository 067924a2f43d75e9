"""DDIM inversion of a reference and the trajectory it leaves (DreamMatcher, Sec. 3.2 and 4.1; Song et al. 2021).

Noise levels are the host's sigmas, and x(sigma) is that of the model's noise process (:mod:`..backbones.process`). A derivative
is any callable of a tensor [B, C, H, W] and a float that gives dx / dsigma: the predicted noise of models that are sampled as
x0 + sigma n.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..backbones.process import EPS, NoiseProcess
from ..finite import REMEDY, finite

Derivative = Callable[[torch.Tensor, float], torch.Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The reference at every noise level: clean estimates and noise at stored sigmas, float32."""

    sigmas: tuple[float, ...]  # ascending
    clean: torch.Tensor  # [K, C, H, W], x0 at each sigma
    noise: torch.Tensor  # [K, C, H, W]
    process: NoiseProcess = EPS

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.clean) or self.clean.shape != self.noise.shape or not self.sigmas:
            raise ValueError(f"trajectory: {len(self.sigmas)} sigmas, clean {tuple(self.clean.shape)} and noise "
                             f"{tuple(self.noise.shape)} do not belong together")
        if any(b <= a for a, b in zip(self.sigmas, self.sigmas[1:])):
            raise ValueError("trajectory: sigmas do not ascend")

    def at(self, sigma: float) -> torch.Tensor:
        """x(sigma) [1, C, H, W]: the stored latent at a stored sigma, else linear in log sigma in (x0, noise)."""
        clean, noise = self._between(sigma)
        return self.process.at(clean, noise, sigma)[None]

    def on(self, device: torch.device | str) -> Trajectory:
        """The same on a device."""
        return replace(self, clean=self.clean.to(device), noise=self.noise.to(device))

    def _between(self, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        upper = bisect.bisect_left(self.sigmas, sigma)
        if upper == len(self.sigmas):
            return self.clean[-1], self.noise[-1]
        if upper == 0 or self.sigmas[upper] == sigma:
            return self.clean[upper], self.noise[upper]
        low, high = math.log(self.sigmas[upper - 1]), math.log(self.sigmas[upper])
        share = (math.log(sigma) - low) / (high - low)
        return (torch.lerp(self.clean[upper - 1], self.clean[upper], share),
                torch.lerp(self.noise[upper - 1], self.noise[upper], share))


def invert(derivative: Derivative, latent: torch.Tensor, sigmas: list[float], first_sigma: float, process: NoiseProcess = EPS,
           on_step: Progress | None = None) -> Trajectory:
    """DDIM inversion of ``latent`` [1, C, H, W] up through ascending ``sigmas``.

    As the official code does, step k evaluates the network at the *coming* noise level sigma_k, on what it sees of the level
    before, and the clean latent counts as noise level ``first_sigma`` (the model's smallest).

    Raises ValueError for sigmas that do not ascend from above 0, for a batch, and, naming it, for a latent or a prediction of
    the model that holds NaN or infinity.
    """
    if latent.ndim != 4 or latent.shape[0] != 1:
        raise ValueError(f"reference latent: it is {tuple(latent.shape)}; inversion takes one picture, [1, C, H, W]")
    if not finite(latent):
        raise ValueError("reference latent: it holds NaN or infinity: the VAE that encoded it overflows, or the picture does so "
                         "already; start ComfyUI with --fp32-vae, or take another VAE")
    if not sigmas or sigmas[0] <= 0 or any(b <= a for a, b in zip(sigmas, sigmas[1:])):
        raise ValueError(f"sigmas must ascend from above 0; got {sigmas[:3]} ...")
    seen = latent.float()  # in the scale in which the network sees it: DDPM's, or the flow's own
    sigma = first_sigma
    cleans, noises = [], []
    for k, coming in enumerate(sigmas):
        predicted = derivative(seen * process.spread(coming), coming)
        if not finite(predicted):
            raise ValueError(f"model: its prediction for the reference at sigma {coming:.3g} holds NaN or infinity; {REMEDY}")
        clean, noise, seen = process.inversion_step(seen, predicted, sigma, coming)
        cleans.append(clean)
        noises.append(noise)
        sigma = coming
        if on_step:
            on_step(k + 1, len(sigmas))
    return Trajectory(tuple(float(s) for s in sigmas), torch.cat(cleans), torch.cat(noises), process)


def reconstruct(derivative: Derivative, trajectory: Trajectory, on_step: Progress | None = None) -> torch.Tensor:
    """DDIM sampling (eta 0; Euler steps of the flow) from the trajectory's last latent down to a clean one, [1, C, H, W]."""
    x = trajectory.at(trajectory.sigmas[-1])
    sigmas = [*reversed(trajectory.sigmas), 0.0]
    for k, (sigma, coming) in enumerate(zip(sigmas, sigmas[1:])):
        x = x + (coming - sigma) * derivative(x, sigma)
        if on_step:
            on_step(k + 1, len(sigmas) - 1)
    return x


def psnr(result: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of ``wanted``. 100 for equal tensors."""
    error = (result.float() - wanted.float()).pow(2).mean().item()
    peak = (wanted.max() - wanted.min()).item() or 1.0
    return min(100.0, 10 * math.log10(peak**2 / max(error, 1e-20)))
