"""Making every number of a vector standard normal on its own."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor, nn

from models.contracts import Bijection
from models.nn.data_init import DataInitialized
from models.transforms.logistic_mixture import LogisticMixtureCDF

LOG_ROOT_2PI = log(2 * pi) / 2
NEWTON_STEPS = 4
"""From the starting point below, more than the last digit of float64 takes."""


def normal_log_prob(z: Tensor) -> Tensor:
    """log of the standard normal density, number by number."""
    return -z * z / 2 - LOG_ROOT_2PI


def normal_quantile(log_p: Tensor) -> Tensor:
    """The z <= 0 with log Phi(z) = ``log_p`` <= log(1/2), however far in the tail; its gradient is of first order only."""
    with torch.no_grad():
        z = torch.where(log_p > -20, torch.special.ndtri(log_p.exp()), -(-2 * log_p - 2 * LOG_ROOT_2PI).clamp_min(1).sqrt())
        for _ in range(NEWTON_STEPS):
            value = torch.special.log_ndtr(z)
            z = z - (value - log_p) * torch.exp(value - normal_log_prob(z))
        slope = torch.exp(log_p - normal_log_prob(z))
    return z + (log_p - log_p.detach()) * slope


class MarginalGaussianization(Bijection, DataInitialized):
    """z_d = Phi^-1(F_d(x_d)), F_d the CDF of a free mixture of ``num_components`` logistics, over vectors [B, D].

    log |det| = sum_d log F_d'(x_d) - log phi(z_d). Laparra et al. 2011 (arXiv:1602.00229) with F_d of Meng et al. 2020
    (arXiv:2003.01941, sec. 4), both found from log F and log(1 - F), so that far tails stay finite. The first batch sets the means
    to the middle quantiles of equal shares, and the scales so that each component is as high as its share is dense (1 / (4 scale) =
    1 / width), but not narrower than a hundredth of the standard deviation. The inverse is a search, see
    ``LogisticMixtureCDF.quantile`` for its tolerance.
    """

    def __init__(self, dim: int, num_components: int):
        super().__init__()
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1; got {num_components}")
        self.logits = nn.Parameter(torch.zeros(1, num_components, dim))
        self.mean = nn.Parameter(torch.zeros(1, num_components, dim))
        self.log_scale = nn.Parameter(torch.zeros(1, num_components, dim))

    def _initialize(self, x: Tensor) -> None:
        count = self.mean.shape[1]
        places = torch.linspace(0, len(x) - 1, 2 * count + 1, device=x.device).round().long()
        quantiles = x.sort(0).values[places]
        gaps = quantiles[2::2] - quantiles[:-1:2]
        self.mean.copy_(quantiles[1::2])
        self.log_scale.copy_((gaps / 4).clamp_min(0.01 * x.std(0, correction=0) + 1e-4).log())

    def _mixture(self) -> LogisticMixtureCDF:
        return LogisticMixtureCDF(self.logits, self.mean, self.log_scale)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.require_initialized()
        if self.initializing:
            self._initialize(x)
        below, above, density = self._mixture().log_probs(x)
        z = normal_quantile(torch.minimum(below, above).clamp_max(log(0.5)))
        z = torch.where(below < above, z, -z)
        return z, (density - normal_log_prob(z)).sum(1)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.require_initialized()
        mixture = self._mixture()
        x = mixture.quantile(torch.special.log_ndtr(z) - torch.special.log_ndtr(-z))
        return x, (normal_log_prob(z) - mixture.log_probs(x)[2]).sum(1)
