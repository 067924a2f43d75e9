"""Muon (Jordan et al. 2024) with all matrices of one shape in one batch.

The numbers are those of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"`` (Liu et al. 2025). That one goes matrix by
matrix and reads its rate into Python, so that a CUDA graph could not hold its step.
"""

from __future__ import annotations

import torch

from .precision import has_fast_bfloat16

#: of the Newton-Schulz iteration x <- a x + b (x xᵀ) x + c (x xᵀ)² x, and how often it is made
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM = 0.95
SMALLEST_NORM = 1e-7


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """[N, R, C] -> [N, R, C], each about the orthogonal matrix nearest to it: singular values of 0.5 to 1.5.

    In bfloat16 where the device multiplies it in hardware, else in float32.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(torch.bfloat16 if has_fast_bfloat16(matrices.device) else torch.float32)
    x = x.transpose(1, 2) if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum. ``rate`` is a tensor of one number, read at every step.

    Every matrix needs a gradient at every step.
    """

    def __init__(self, matrices: list[torch.Tensor], rate: torch.Tensor, weight_decay: float = 0.01):
        shapes: dict[torch.Size, list[torch.Tensor]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        super().__init__([{"params": alike} for alike in shapes.values()], {"weight_decay": weight_decay})
        self.rate = rate
        for group in self.param_groups:
            first = group["params"][0]
            self.state[first]["momentum"] = torch.zeros(len(group["params"]), *first.shape, device=first.device)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure is taken here
        for group in self.param_groups:
            matrices = group["params"]
            gradients = torch.stack([matrix.grad for matrix in matrices])
            momentum = self.state[matrices[0]]["momentum"].lerp_(gradients, 1 - MOMENTUM)
            change = orthogonal(gradients.lerp(momentum, MOMENTUM)).float()
            change = change * (0.2 * max(matrices[0].shape) ** 0.5 * self.rate)  # the size of AdamW's steps
            torch._foreach_mul_(matrices, 1 - self.rate * group["weight_decay"])
            torch._foreach_sub_(matrices, list(change.unbind()))
