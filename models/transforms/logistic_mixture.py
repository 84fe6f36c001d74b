"""The CDF of a mixture of logistics, as a map of the whole line onto itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.distributions.normal import full_precision
from models.transforms.maps import ScalarMap

MIN_LOG_SCALE = -7.0
"""Bound of a component's log scale from below, the released code's of Flow++ (flows.py, MixLogisticCDF)."""
MAX_STEPS = 200
"""More than the search for a quantile takes: each step halves its bracket or its last step, down to the last digits."""
LEAST_LOG_SLOPE = -80.0
"""Between far components the slope is so small that its inverse overflows float32: gradients of a quantile stop growing here."""


class LogisticMixtureCDF:
    """F(x) = sum_m w_m sigmoid((x - mean_m) / scale_m) of each number of x [B, C, ...], weights w = softmax(logits).

    ``logits``, ``mean`` and ``log_scale`` are [B|1, M, C, ...]. Ho et al. 2019 (arXiv:1902.00275), sec. 3.2. All is found from
    log F and log(1 - F), so that neither tail is rounded to 0 or 1.
    """

    def __init__(self, logits: Tensor, mean: Tensor, log_scale: Tensor):
        self.log_weights, self.mean = full_precision(logits).log_softmax(1), full_precision(mean)
        self.log_scale = full_precision(log_scale).clamp_min(MIN_LOG_SCALE)
        self.rate = torch.exp(-self.log_scale)

    def log_probs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log F(x), log(1 - F(x)) and the log density log F'(x), each shaped as x."""
        t = (x.unsqueeze(1) - self.mean) * self.rate
        rest = F.softplus(-t.abs())
        below, above = t.clamp(max=0) - rest, (-t).clamp(max=0) - rest  # log sigmoid of t and of -t
        left = self.log_weights + below
        return left.logsumexp(1), (self.log_weights + above).logsumexp(1), (left + above - self.log_scale).logsumexp(1)

    def logit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, log dy/dx) of y = logit F(x): dy/dx = F' / (F (1 - F))."""
        low, high, density = self.log_probs(x)
        return low - high, density - low - high

    def quantile(self, y: Tensor) -> Tensor:
        """The x of logit F(x) = y, to 4 units in the last place of 1 + |x|: 1e-15 in float64, 5e-7 in float32.

        It lies between the smallest and the largest of the components' own quantiles mean_m + scale_m y. From this bracket
        Newton's method, bisecting where a step would leave the bracket or not halve the step before. Gradients are those of the
        implicit function, dx/dy = 1 / slope and dx/dtheta = -(d logit F / d theta) / slope, of first order only. Where
        components are far apart F is flat, and float numbers of y between tell few x apart.
        """
        with torch.no_grad():
            x = self._search(y)
        value, log_slope = self.logit(x)
        rise = torch.exp(-log_slope.detach().clamp_min(LEAST_LOG_SLOPE))
        missing = y - value
        return x + (missing - missing.detach()) * rise

    def _search(self, y: Tensor) -> Tensor:
        own = self.mean + y.unsqueeze(1) / self.rate
        low, high = own.amin(1), own.amax(1)
        x, last, tolerance = (low + high) / 2, high - low, 4 * torch.finfo(y.dtype).eps
        for _ in range(MAX_STEPS):
            value, log_slope = self.logit(x)
            low, high = torch.where(value <= y, x, low), torch.where(value >= y, x, high)
            step = (y - value) * torch.exp(-log_slope)
            newton = x + step
            taken = (newton > low) & (newton < high) & (step.abs() <= last / 2)
            following = torch.where(taken, newton, (low + high) / 2)
            last, x = (following - x).abs(), following
            if (last <= tolerance * (1 + x.abs())).all():
                break
        return x


class LogisticMixture(ScalarMap):
    """z = logit F(x) exp(a) + b, F the CDF of a mixture of M = ``num_components`` logistics, a = tanh(h).

    Flow++, Ho et al. 2019 (arXiv:1902.00275), sec. 3.2. The bound |a| < 1 is the released code's (flows.py,
    MixLogisticAttnCoupling). The parameters of a number are h, b and M each of logits, means and log scales; where all are 0
    it is the identity. No component: the affine map x exp(a) + b of the paper's ablation.
    """

    def __init__(self, num_components: int):
        super().__init__()
        if num_components < 0:
            raise ValueError(f"a mixture has num_components of 1 or more, or 0 for an affine map; got {num_components}")
        self.num_components = num_components
        self.num_params = 2 + 3 * num_components

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        a, b, mixture = self._shape(params)
        y, log_slope = mixture.logit(x) if mixture else (x, torch.zeros_like(x))
        return y * a.exp() + b, log_slope + a

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x to the tolerance of ``LogisticMixtureCDF.quantile``."""
        a, b, mixture = self._shape(params)
        y = (z - b) * torch.exp(-a)
        if not mixture:
            return y, -a
        x = mixture.quantile(y)
        return x, -mixture.logit(x)[1] - a

    def _shape(self, params: Tensor) -> tuple[Tensor, Tensor, LogisticMixtureCDF | None]:
        h, b, *mixture = full_precision(params).unflatten(1, (self.num_params, -1)).split([1, 1] + 3 * [self.num_components], 1)
        return h.squeeze(1).tanh(), b.squeeze(1), LogisticMixtureCDF(*mixture) if self.num_components else None
