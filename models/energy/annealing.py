"""Annealed importance sampling (Neal 2001, arXiv:physics/9803008) along any path of unnormalised densities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Path:
    """Unnormalised densities f_beta, 0 <= beta <= 1: f_0 has the known normaliser exp(log_z0), f_1 = exp(-energy)."""

    log_z0: float
    space: str
    """What the normaliser of f_1 sums or integrates over, in words: part of every number made from it."""

    def start(self, n: int) -> Tensor:
        """``n`` exact draws from f_0."""
        raise NotImplementedError

    def log_density(self, x: Tensor, beta: float) -> Tensor:
        """log f_beta [n]."""
        raise NotImplementedError

    def move(self, x: Tensor, beta: float, step_size: float) -> tuple[Tensor, Tensor]:
        """A kernel that leaves f_beta invariant: (states, mean acceptance []). Exact moves ignore ``step_size``."""
        raise NotImplementedError


def schedule(num_temperatures: int, power: float) -> list[float]:
    """beta_k = (k / num_temperatures)^power for k = 0 .. num_temperatures: a power above 1 dwells near the base."""
    return [(k / num_temperatures) ** power for k in range(num_temperatures + 1)]


@torch.no_grad()
def tune_step_sizes(path: Path, betas: Sequence[float], n: int, step_size: float, acceptance: float) -> list[float]:
    """A step size for each temperature, from a trial run that steers by its ``acceptance``.

    Using sizes found here in another run keeps that run's weights unbiased; adapting within it would not.
    """
    x, sizes = path.start(n), []
    for beta in betas:
        sizes.append(step_size)
        x, accepted = path.move(x, beta, step_size)
        step_size *= 1.1 if float(accepted) > acceptance else 1 / 1.1
    return sizes


@torch.no_grad()
def log_weights(path: Path, betas: Sequence[float], step_sizes: Sequence[float], n: int) -> Tensor:
    """Log importance weights [n] of annealed chains, in float64: E[exp w] = Z.

    w = log Z_0 + sum_k log f_{beta_k}(x_k) - log f_{beta_{k-1}}(x_k), where x_{k+1} is x_k moved under f_{beta_k}. So
    log mean exp w estimates log Z, and E[w] <= log Z.
    """
    x = path.start(n)
    total = torch.full((n,), path.log_z0, dtype=torch.float64, device=x.device)
    for k in range(1, len(betas)):
        if k > 1:
            x, _ = path.move(x, betas[k - 1], step_sizes[k - 1])
        total += path.log_density(x, betas[k]).double() - path.log_density(x, betas[k - 1]).double()
    return total
