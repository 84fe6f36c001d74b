"""The factorised Gaussian, which every base, prior and posterior starts from."""

from math import log, pi

import torch
from torch import Tensor

from models.contracts import Distribution, sum_event


def full_precision(t: Tensor) -> Tensor:
    """At least float32, so that a density is never summed in the half precision autocast left a net's output in."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def expand_batch(t: Tensor, n: int) -> Tensor:
    """``t`` [B|1, ...] as [n, ...]; ValueError when its batch is neither 1 nor n."""
    if t.shape[0] not in (1, n):
        raise ValueError(f"asked for {n} draws of a distribution whose parameters have batch {t.shape[0]}")
    return t.expand(n, *t.shape[1:])


class DiagonalNormal(Distribution):
    """Independent Gaussians: log p(z) = sum_d [-(z_d - mean_d)^2 / (2 scale_d^2) - log scale_d - log(2 pi) / 2].

    ``mean`` and ``log_scale`` are [B, *event] or [1, *event] (which serves any B).
    """

    def __init__(self, mean: Tensor, log_scale: Tensor):
        self.mean, self.log_scale = full_precision(mean), full_precision(log_scale)

    def log_prob(self, z: Tensor) -> Tensor:
        residual = self.standardize(z)
        return sum_event(-0.5 * (residual * residual + log(2 * pi)) - self.log_scale)

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draws [n, *event]; ``temperature`` scales the standard deviation."""
        mean, log_scale = expand_batch(self.mean, n), expand_batch(self.log_scale, n)
        return mean + temperature * torch.exp(log_scale) * torch.randn_like(mean)

    def standardize(self, z: Tensor) -> Tensor:
        """The residual (z - mean) / scale, standard normal when z follows this distribution."""
        return (z - self.mean) * torch.exp(-self.log_scale)

    def place(self, residual: Tensor) -> Tensor:
        """mean + scale * residual, the inverse of ``standardize``."""
        return self.mean + torch.exp(self.log_scale) * residual
