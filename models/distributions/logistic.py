"""The factorised logistic distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contracts import Conditional, Distribution, sum_event
from models.distributions.normal import expand_batch, full_precision


class DiagonalLogistic(Distribution):
    """Independent logistics: log p(z) = sum_d [-r_d - 2 softplus(-r_d) - log scale_d], r = (z - location) / scale.

    ``location`` and ``log_scale`` are [B, *event] or [1, *event] (which serves any B).
    """

    def __init__(self, location: Tensor, log_scale: Tensor):
        self.location, self.log_scale = full_precision(location), full_precision(log_scale)

    def log_prob(self, z: Tensor) -> Tensor:
        residual = self.standardize(z).abs()  # the density is even: no large terms that cancel
        return sum_event(-residual - 2 * F.softplus(-residual) - self.log_scale)

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draws [n, *event]; ``temperature`` scales the scale."""
        location, log_scale = expand_batch(self.location, n), expand_batch(self.log_scale, n)
        u = torch.rand_like(location).clamp_min(torch.finfo(location.dtype).tiny)
        return location + temperature * torch.exp(log_scale) * torch.logit(u)

    def standardize(self, z: Tensor) -> Tensor:
        """The residual (z - location) / scale, standard logistic when z follows this distribution."""
        return (z - self.location) * torch.exp(-self.log_scale)

    def place(self, residual: Tensor) -> Tensor:
        """location + scale * residual, the inverse of ``standardize``."""
        return self.location + torch.exp(self.log_scale) * residual


class StandardLogistic(Conditional):
    """The logistic of location 0 and scale 1 over events of ``shape`` (NICE, Dinh et al. 2014, arXiv:1410.8516, sec. 3.4)."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, *shape), persistent=False)

    def forward(self, context: Tensor | None = None) -> DiagonalLogistic:
        return DiagonalLogistic(self.zero, self.zero)
