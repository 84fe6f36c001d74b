"""Discretized logistic heads: one a sub-pixel, and PixelCNN++'s mixture with channel coupling.

Both place K bins over the line: bin k is [k - 1/2, k + 1/2], the first and last take the tails. A location mu and a scale s
are in units of half the range, so mu = -1 is black (level 0), mu = 1 white (level K - 1), and zero output means mu = 0, s = 1:
mid-grey, spread over the whole range.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contracts import DataSpec, Likelihood
from models.likelihoods.levels import (
    LocationScale, all_levels, at_least_float32, centred, location_and_log_scale, nearest_level, require_levels,
)  # fmt: skip
from models.likelihoods.noise import gumbel_like, logistic_like

MAX_LOG_SCALE = 60.0
"""Upper clamp on log scales: beyond it the inner bins of float32 underflow. No fitted head comes near."""


def bin_log_prob(t: Tensor, location: Tensor, rate: Tensor, levels: int) -> Tensor:
    """log of a logistic's mass in the bin of centred level ``t``; ``location`` and 1 / ``rate`` in levels.

    With bin edges a < b in standard units, b - a = rate and the difference of CDFs factors exactly,

        sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(-rate)),

    so nothing cancels at any scale; an edge bin keeps only the factor of its inner edge. Neighbouring bins share edges to
    the last bit (``t`` +- 1/2 is exact), hence the masses sum to 1 in float32 too.
    """
    return _BinLogProb.apply(t, location, rate, levels)


class _BinLogProb(torch.autograd.Function):
    """Keeps its two inputs and nothing else of their size for the gradient. The maps that tell edge bins are of ``t``'s size."""

    @staticmethod
    def forward(ctx, t, location, rate, levels):
        ctx.save_for_backward(t, location, rate)
        ctx.levels = levels
        not_first, not_last, inner = _interior(t, levels, rate.dtype)
        log_prob = F.logsigmoid((t + 0.5 - location).mul_(rate)).mul_(not_last)
        log_prob.addcmul_(F.logsigmoid((location - (t - 0.5)).mul_(rate)), not_first)
        return log_prob.addcmul_(torch.expm1(-rate).neg_().log_(), inner)

    @staticmethod
    def backward(ctx, gradient):
        t, location, rate = ctx.saved_tensors
        not_first, not_last, inner = _interior(t, ctx.levels, rate.dtype)
        upper, lower = t + 0.5 - location, location - (t - 0.5)
        below, above = (-upper * rate).sigmoid() * not_last, (-lower * rate).sigmoid() * not_first
        minus_width = torch.expm1(-rate)
        by_location = (above - below) * rate
        by_rate = below * upper + above * lower - (1 + minus_width) / minus_width * inner
        return None, (gradient * by_location).sum_to_size(location.shape), (gradient * by_rate).sum_to_size(rate.shape), None


def _interior(t: Tensor, levels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """1 where ``t`` is not the first level, not the last, neither of them; else 0."""
    edge = (levels - 1) / 2
    not_first, not_last = (t > -edge).to(dtype), (t < edge).to(dtype)
    return not_first, not_last, not_first * not_last


def bin_mean(location: Tensor, rate: Tensor, levels: int) -> Tensor:
    """Expected level of such a logistic, in [0, K-1]: sum over k >= 1 of P(x >= k)."""
    total = torch.zeros_like(location)
    for k in range(1, levels):
        total += torch.sigmoid((location - (k - levels / 2)) * rate)
    return total


class DiscretizedLogistic(LocationScale):
    """P(x = k) = sigmoid((k + 1/2 - mu) / s) - sigmoid((k - 1/2 - mu) / s), edge bins taking the tails.

    ``params`` as for every LocationScale. Log scales below ``min_log_scale`` are clamped to it (where their gradient is zero).
    ``temperature`` T multiplies the scale. Source: Kingma et al. 2016, arXiv:1606.04934, section 5.2, with edge bins added
    (Salimans et al. 2017), without which the masses do not sum to 1.
    """

    head = "discretized_logistic"

    def _parse(self, params: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Location in centred levels and rate (inverse scale in levels), [B, C, H, W] each."""
        half = (self.levels - 1) / 2
        mean, log_scale = location_and_log_scale(params)
        return mean * half, (-log_scale.clamp(self.min_log_scale, MAX_LOG_SCALE)).exp() / (half * temperature)

    def _bins(self, t: Tensor, location: Tensor, rate: Tensor) -> Tensor:
        return bin_log_prob(t, location, rate, self.levels)

    def sample(self, params: Tensor, temperature: float = 1.0) -> Tensor:
        location, rate = self._parse(params)
        return nearest_level(location + temperature * logistic_like(location) / rate, self.levels)

    def mean(self, params: Tensor) -> Tensor:
        return bin_mean(*self._parse(params), self.levels)


class MixtureLogistic(Likelihood):
    """A mixture over whole pixels of discretized logistics whose locations follow the pixel's earlier channels.

        P(x) = sum_i pi_i prod_c logistic bin(x_c; mu_ic + sum_{d<c} tanh(a_icd) v_d, s_ic),   v = x in [-1, 1]

    ``params`` [B, M (1 + 2 C + C(C-1)/2), H, W]: for each component its logit, C locations, C log scales, and the coefficients
    a_10, a_20, a_21, ... Zero output: equal weights, no coupling. Log scales below ``min_log_scale`` are clamped to it.
    ``temperature`` T multiplies the scales and divides the mixture logits. Source: Salimans et al. 2017, arXiv:1701.05517,
    eq. 1 to 3 (min_log_scale = -7 and the tanh are their code's). Deviations: the bin masses are exact at every scale, where
    their code switches to a density times the bin width; samples are rounded before they are coupled to.
    """

    def __init__(self, spec: DataSpec, num_mixtures: int, min_log_scale: float):
        super().__init__()
        self.spec = spec
        self.levels = require_levels(spec, "mixture_logistic")
        if num_mixtures < 1:
            raise ValueError(f"likelihood.num_mixtures must be at least 1; got {num_mixtures}")
        self.groups = 1
        self.num_mixtures = num_mixtures
        self.min_log_scale = min_log_scale

    def _sizes(self) -> tuple[int, int, int, int]:
        channels = self.spec.shape[0]
        return 1, channels, channels, channels * (channels - 1) // 2

    def param_channels(self) -> int:
        return self.num_mixtures * sum(self._sizes())

    def _parse(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [B, M, H, W]; locations in centred levels and rates [B, M, C, H, W]; coefficients [B, M, C(C-1)/2, H, W]."""
        half = (self.levels - 1) / 2
        params = at_least_float32(params).contiguous()  # strided as channels-last maps are, all below takes twice as long
        blocks = params.unflatten(1, (self.num_mixtures, -1))
        logits, means, log_scales, coefficients = blocks.split(self._sizes(), 2)
        rates = (-log_scales.clamp(self.min_log_scale, MAX_LOG_SCALE)).exp() / half
        return logits.squeeze(2), means * half, rates, coefficients.tanh()

    @staticmethod
    def _shift(c: int, coefficients: Tensor, earlier: list[Tensor]) -> Tensor | float:
        """What the earlier channels (centred levels) add to channel c's location."""
        first = c * (c - 1) // 2
        return sum(coefficients[..., first + d, :, :] * earlier[d] for d in range(c))

    def log_prob_map(self, params: Tensor, x: Tensor) -> Tensor:
        logits, locations, rates, coefficients = self._parse(params)
        t = centred(x, self.levels, logits.dtype)[:, None]
        values = list(t.unbind(2))
        coupled = torch.stack(
            [locations[:, :, c] + self._shift(c, coefficients, values) for c in range(len(values))], 2
        )
        components = bin_log_prob(t, coupled, rates, self.levels).sum(2)
        return (logits.log_softmax(1) + components).logsumexp(1, keepdim=True)

    def log_pmf(self, params: Tensor, x: Tensor, channel: int, temperature: float = 1.0) -> Tensor:
        """The earlier channels weigh the components: sum_i w_i p_i(x_c = k), w_i ~ pi_i prod_{d<c} p_i(x_d)."""
        logits, locations, rates, coefficients = self._parse(params)
        weights, rates = (logits / temperature).log_softmax(1), rates / temperature
        values = list(centred(x, self.levels, logits.dtype)[:, None].unbind(2))
        for c in range(channel):
            location = locations[:, :, c] + self._shift(c, coefficients, values)
            weights = weights + bin_log_prob(values[c], location, rates[:, :, c], self.levels)
        location = locations[:, :, channel] + self._shift(channel, coefficients, values)
        levels = all_levels(self.levels, location)
        masses = bin_log_prob(levels, location[:, :, None], rates[:, :, channel, None], self.levels)
        return (weights.log_softmax(1)[:, :, None] + masses).logsumexp(1)

    def sample(self, params: Tensor, temperature: float = 1.0) -> Tensor:
        logits, *parts = self._parse(params)
        chosen = (logits + temperature * gumbel_like(logits)).argmax(1)[:, None, None]
        locations, rates, coefficients = (
            p.gather(1, chosen.expand(-1, 1, *p.shape[2:])).squeeze(1) for p in parts
        )
        levels, values = [], []
        for c in range(locations.shape[1]):
            location = locations[:, c] + self._shift(c, coefficients, values)
            levels.append(nearest_level(location + temperature * logistic_like(location) / rates[:, c], self.levels))
            values.append(centred(levels[-1], self.levels, location.dtype))
        return torch.stack(levels, 1)

    def mean(self, params: Tensor) -> Tensor:
        """Exact for the first channel; a later one takes the earlier at their means (exact is a sum over K^(C-1) colours)."""
        logits, locations, rates, coefficients = self._parse(params)
        means, values = [], []
        for c in range(locations.shape[2]):
            location = locations[:, :, c] + self._shift(c, coefficients, values)
            means.append(bin_mean(location, rates[:, :, c], self.levels))
            values.append(means[-1] - (self.levels - 1) / 2)
        return (logits.softmax(1)[:, :, None] * torch.stack(means, 2)).sum(1)
