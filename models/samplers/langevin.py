"""Markov chains on an energy: what a kernel is, and Langevin dynamics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]
"""States [B, *event] to energies [B]; the target density is proportional to exp(-energy)."""


def energy_and_gradient(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """(energy(x) [B], its gradient [B, *event]), both detached.

    Works under ``no_grad`` and ``inference_mode``, and puts no gradient on any parameter.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        value = energy(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


class Sampler:
    """A Markov kernel: ``sampler(energy, x) -> (x', log)``.

    Pure: it holds settings and no state, draws from torch's global generator, enables gradients for itself, and never
    touches parameters or train/eval mode. ``log`` holds detached scalars about the move.
    """

    def __call__(self, energy: Energy, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError


class Langevin(Sampler):
    """Unadjusted Langevin dynamics: ``num_steps`` times x <- x - step_size * grad energy(x) + noise * N(0, I).

    With noise = sqrt(2 step_size) it follows exp(-energy) up to a bias of order step_size; any other noise follows
    exp(-energy * 2 step_size / noise^2), which is how published short-run chains trade likelihood for speed
    (Nijkamp et al. 2019, arXiv:1904.09770). Logs ``langevin_drift``: the mean norm of
    step_size * grad energy over chains and steps (r_t of arXiv:1903.12370, section 3.2).
    """

    def __init__(self, num_steps: int, step_size: float, noise: float):
        if num_steps < 1:
            raise ValueError(f"a Langevin chain takes at least one step; got num_steps={num_steps}")
        self.num_steps = num_steps
        self.step_size = step_size
        self.noise = noise

    def __call__(self, energy: Energy, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        drift = 0.0
        for _ in range(self.num_steps):
            _, gradient = energy_and_gradient(energy, x)
            move = self.step_size * gradient
            x = x - move + self.noise * torch.randn_like(x)
            drift = drift + move.flatten(1).norm(dim=1).mean()
        return x, {"langevin_drift": drift / self.num_steps}
