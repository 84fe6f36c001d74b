"""Gaussian heads: discretized for integers, plain for continuous data."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from models.contracts import DataSpec, Likelihood
from models.likelihoods.levels import LocationScale, location_and_log_scale, nearest_level

MAX_LOG_SCALE = 12.0
"""Upper clamp on log scales: beyond it the inner bins drown in float64's rounding. No fitted head comes near."""
FAR = 1e100
"""Where the edge bins end, in standard units: a float64 whose square is finite."""


class DiscretizedGaussian(LocationScale):
    """P(x = k) = Phi((k + 1/2 - mu) / s) - Phi((k - 1/2 - mu) / s), edge bins taking the tails.

    ``params`` as for every LocationScale, in units of half the range: mu = -1 is level 0, mu = 1 is level K - 1, zero output is
    mid-grey spread over the whole range. Log scales below ``min_log_scale`` are clamped to it (where their gradient is zero).
    ``temperature`` T multiplies the scale. Source: Ho et al. 2020, arXiv:2006.11239, eq. 13.

    The difference of CDFs is taken on the side where both are small, log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b))), and in
    float64 whatever the parameters' type, because for wide scales it cancels to the last bits of float32.
    """

    head = "discretized_gaussian"

    def _parse(self, params: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mean in centred levels and scale in levels, [B, C, H, W] each."""
        half = (self.levels - 1) / 2
        mean, log_scale = location_and_log_scale(params)
        return mean * half, log_scale.clamp(self.min_log_scale, MAX_LOG_SCALE).exp() * (half * temperature)

    def _bins(self, t: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        dtype = mean.dtype
        t, mean, scale = t.double(), mean.double(), scale.double()
        edge = (self.levels - 1) / 2
        lower = torch.where(t > -edge, (t - 0.5 - mean) / scale, -FAR)
        upper = torch.where(t < edge, (t + 0.5 - mean) / scale, FAR)
        above = t > mean  # such bins are reflected: Phi(b) - Phi(a) = Phi(-a) - Phi(-b)
        outer = torch.special.log_ndtr(torch.where(above, -upper, lower))
        inner = torch.special.log_ndtr(torch.where(above, -lower, upper))
        return (inner + (-torch.expm1(outer - inner)).log()).to(dtype)

    def sample(self, params: Tensor, temperature: float = 1.0) -> Tensor:
        mean, scale = self._parse(params)
        return nearest_level(mean + temperature * scale * torch.randn_like(mean), self.levels)

    def mean(self, params: Tensor) -> Tensor:
        """sum over k >= 1 of P(x >= k)."""
        mean, scale = self._parse(params)
        total = torch.zeros_like(mean)
        for k in range(1, self.levels):
            total += torch.special.ndtr((mean - (k - self.levels / 2)) / scale)
        return total


class Gaussian(Likelihood):
    """Independent normals for continuous data: log p(x) = -(x - mu)^2 / (2 s^2) - log s - log(2 pi) / 2.

    ``params`` as for every LocationScale, in the data's own units; zero output is standard normal.
    Log scales below ``min_log_scale`` are clamped to it, which bounds the density. ``temperature`` T multiplies the scale.
    Raises ValueError for data with levels: a density is not a probability of integers.
    """

    def __init__(self, spec: DataSpec, min_log_scale: float):
        super().__init__()
        if spec.levels is not None:
            raise ValueError(
                f"likelihood=gaussian is a density for continuous data, but this data has {spec.levels} levels: choose "
                "likelihood=discretized_gaussian, discretized_logistic, mixture_logistic or categorical"
            )
        self.spec = spec
        self.groups = spec.shape[0]
        self.min_log_scale = min_log_scale

    def param_channels(self) -> int:
        return 2 * self.spec.shape[0]

    def _parse(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = location_and_log_scale(params)
        return mean, log_scale.clamp_min(self.min_log_scale)

    def log_prob_map(self, params: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = self._parse(params)
        standard = (x - mean) * (-log_scale).exp()
        return -0.5 * standard**2 - log_scale - 0.5 * log(2 * pi)

    def sample(self, params: Tensor, temperature: float = 1.0) -> Tensor:
        mean, log_scale = self._parse(params)
        return mean + temperature * log_scale.exp() * torch.randn_like(mean)

    def mean(self, params: Tensor) -> Tensor:
        return self._parse(params)[0]
