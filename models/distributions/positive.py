"""Distributions over positive numbers."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi

import torch
from torch import Tensor, nn

from models.contracts import Conditional, Distribution, sum_event
from models.distributions.normal import expand_batch, full_precision


class HalfNormal(Distribution):
    """Independent |N(0, scale^2)|: log p(d) = sum [log 2 - d^2 / (2 scale^2) - log scale - log(2 pi) / 2] over d >= 0.

    ``log_scale`` is [B|1, *event].
    """

    def __init__(self, log_scale: Tensor):
        self.log_scale = full_precision(log_scale)

    def log_prob(self, z: Tensor) -> Tensor:
        standard = z * torch.exp(-self.log_scale)
        return sum_event(log(2) - 0.5 * (standard * standard + log(2 * pi)) - self.log_scale)

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        scale = temperature * expand_batch(self.log_scale, n).exp()
        return scale * torch.randn_like(scale).abs()


class Exponential(Distribution):
    """Independent exponentials: log p(d) = sum [-d / scale - log scale] over d >= 0. ``log_scale`` is [B|1, *event]."""

    def __init__(self, log_scale: Tensor):
        self.log_scale = full_precision(log_scale)

    def log_prob(self, z: Tensor) -> Tensor:
        return sum_event(-z * torch.exp(-self.log_scale) - self.log_scale)

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        scale = temperature * expand_batch(self.log_scale, n).exp()
        return scale * torch.empty_like(scale).exponential_()


class ScaledBy(Conditional):
    """``distribution(log_scale)`` over [B, out, ...], log scales ``conditioner(in, out)`` of a [B, in, ...]; None: all 0."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        distribution: Callable[[Tensor], Distribution],
        conditioner: Callable[[int, int], nn.Module] | None,
    ):
        super().__init__()
        self.out_channels, self.distribution = out_channels, distribution
        self.net = None if conditioner is None else conditioner(in_channels, out_channels)

    def forward(self, context: Tensor | None = None) -> Distribution:
        unit = context.new_zeros(1, self.out_channels, *context.shape[2:])
        return self.distribution(unit if self.net is None else self.net(context))
