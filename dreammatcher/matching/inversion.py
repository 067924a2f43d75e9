"""DDIM inversion of a reference and the trajectory it leaves (DreamMatcher, Sec. 3.2 and 4.1; Song et al. 2021).

Noise levels are sigmas in the k-diffusion convention: ``x(sigma) = x0 + sigma * noise``. A denoiser is any callable
``eps(x, sigma) -> noise`` on tensors [B, C, H, W] and a float. With abar = 1 / (1 + sigma^2) the DDPM latent of the
papers is ``x * sqrt(abar)``.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..finite import REMEDY, finite

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The reference at every noise level: clean estimates and noise at stored sigmas, float32."""

    sigmas: tuple[float, ...]  # ascending
    clean: torch.Tensor  # [K, C, H, W], x0 at each sigma
    noise: torch.Tensor  # [K, C, H, W]

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.clean) or self.clean.shape != self.noise.shape or not self.sigmas:
            raise ValueError(f"trajectory: {len(self.sigmas)} sigmas, clean {tuple(self.clean.shape)} and noise "
                             f"{tuple(self.noise.shape)} do not belong together")
        if any(b <= a for a, b in zip(self.sigmas, self.sigmas[1:])):
            raise ValueError("trajectory: sigmas do not ascend")

    def at(self, sigma: float) -> torch.Tensor:
        """x(sigma) [1, C, H, W]: the stored latent at a stored sigma, else linear in log sigma in (x0, noise)."""
        clean, noise = self._between(sigma)
        return (clean + sigma * noise)[None]

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


def invert(
    eps: Denoiser, latent: torch.Tensor, sigmas: list[float], first_sigma: float, on_step: Progress | None = None
) -> Trajectory:
    """DDIM inversion of ``latent`` [1, C, H, W] up through ascending ``sigmas``.

    As the official code does, step k evaluates the network at the *coming* noise level sigma_k on the latent of the
    level before it, and the clean latent counts as noise level ``first_sigma`` (the model's smallest).

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
    ddpm = latent.float()  # x * sqrt(abar), the scale in which the network sees it
    level = first_sigma
    clean, noise = [], []
    for k, sigma in enumerate(sigmas):
        predicted = eps(ddpm * _scale(sigma), sigma)
        if not finite(predicted):
            raise ValueError(f"model: its prediction for the reference at sigma {sigma:.3g} holds NaN or infinity; {REMEDY}")
        x0 = ddpm * _scale(level) - level * predicted
        clean.append(x0)
        noise.append(predicted)
        ddpm, level = (x0 + sigma * predicted) / _scale(sigma), sigma
        if on_step:
            on_step(k + 1, len(sigmas))
    return Trajectory(tuple(float(s) for s in sigmas), torch.cat(clean), torch.cat(noise))


def _scale(sigma: float) -> float:
    """Factor from a DDPM latent to x: 1 / sqrt(abar)."""
    return math.sqrt(1.0 + sigma * sigma)


def reconstruct(eps: Denoiser, trajectory: Trajectory, on_step: Progress | None = None) -> torch.Tensor:
    """DDIM sampling (eta 0) from the trajectory's last latent down to a clean one, [1, C, H, W]."""
    x = trajectory.at(trajectory.sigmas[-1])
    levels = [*reversed(trajectory.sigmas), 0.0]
    for k, (sigma, following) in enumerate(zip(levels, levels[1:])):
        x = x + (following - sigma) * eps(x, sigma)
        if on_step:
            on_step(k + 1, len(levels) - 1)
    return x


def psnr(result: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of ``wanted``. 100 for equal tensors."""
    error = (result.float() - wanted.float()).pow(2).mean().item()
    peak = (wanted.max() - wanted.min()).item() or 1.0
    return min(100.0, 10 * math.log10(peak**2 / max(error, 1e-20)))
