"""Hamiltonian Monte Carlo: the kernel whose stationary law is exact."""

from __future__ import annotations

import torch
from torch import Tensor

from models.samplers.langevin import Energy, Sampler, energy_and_gradient


def _reflect(x: Tensor, momentum: Tensor, box: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Fold positions back into the box, as balls bounce off its walls: volume-preserving and reversible."""
    low, high = box
    phase = torch.remainder(x - low, 2 * (high - low))
    bounced = phase > high - low
    return low + torch.where(bounced, 2 * (high - low) - phase, phase), torch.where(bounced, -momentum, momentum)


class HMC(Sampler):
    """``num_steps`` times: draw momenta N(0, I), ``num_leapfrog`` leapfrog steps of ``step_size``, accept or stay.

    Leaves exp(-energy) invariant at any step size (Neal 2011, arXiv:1206.1901); ``num_leapfrog=1`` is the
    Metropolis-adjusted Langevin algorithm with proposal x - step_size^2 / 2 * grad energy + step_size * N(0, I).
    Logs ``acceptance``, the mean acceptance probability.
    """

    def __init__(self, num_steps: int, step_size: float, num_leapfrog: int):
        if num_steps < 1 or num_leapfrog < 1:
            raise ValueError(f"num_steps and num_leapfrog are at least 1; got {num_steps} and {num_leapfrog}")
        self.num_steps = num_steps
        self.step_size = step_size
        self.num_leapfrog = num_leapfrog

    def __call__(self, energy: Energy, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.move(energy, x, self.step_size)

    def move(
        self, energy: Energy, x: Tensor, step_size: float, box: tuple[float, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The kernel at another step size, and for densities confined to the cube ``box`` = (low, high)."""
        acceptance = 0.0
        for _ in range(self.num_steps):
            x, accepted = self._step(energy, x, step_size, box)
            acceptance = acceptance + accepted.mean()
        return x, {"acceptance": acceptance / self.num_steps}

    def _step(self, energy: Energy, start: Tensor, step_size: float, box) -> tuple[Tensor, Tensor]:
        x, momentum = start, torch.randn_like(start)
        value, gradient = energy_and_gradient(energy, x)
        before = value + 0.5 * momentum.flatten(1).square().sum(1)
        for _ in range(self.num_leapfrog):
            momentum = momentum - 0.5 * step_size * gradient
            x = x + step_size * momentum
            if box is not None:
                x, momentum = _reflect(x, momentum, box)
            value, gradient = energy_and_gradient(energy, x)
            momentum = momentum - 0.5 * step_size * gradient
        log_ratio = before - value - 0.5 * momentum.flatten(1).square().sum(1)
        log_ratio = torch.where(log_ratio.isfinite(), log_ratio, -torch.inf)
        accept = torch.rand_like(log_ratio).log() < log_ratio
        x = torch.where(accept.view(-1, *[1] * (x.dim() - 1)), x, start)
        return x, log_ratio.clamp(max=0.0).exp()
