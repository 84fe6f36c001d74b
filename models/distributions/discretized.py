"""Logistics over all integers: the priors of integer flows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import Conditional, Distribution, sum_event
from models.distributions.normal import expand_batch, full_precision
from models.transforms.integer import grid_step

MAX_LOG_RATE, MIN_LOG_RATE = 4.0, -20.0
"""Bounds of log(step / scale). At the upper one a bin around its location has all the mass but e^-27."""
MAX_INTEGER = 2**24
"""What float32 holds of the integers exactly; a code covers [-2^24, 2^24)."""
LOG_SCALE_AT_START = -2.0
"""A logistic of scale e^-2 has the entropy of the data's range, 1; the released code's start at 1, 2 nats a number above it."""


def interval_log_prob(low: Tensor, high: Tensor, location: Tensor, rate: Tensor) -> Tensor:
    """log of a logistic's mass between ``low`` and ``high``, where 1 / ``rate`` is its scale.

    With a = (low - location) rate and b likewise, sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): nothing
    cancels, however narrow the interval is or far away.
    """
    below, above = F.logsigmoid((high - location) * rate), F.logsigmoid((location - low) * rate)
    return below + above + (-torch.expm1((low - high) * rate)).log()


class DiscretizedMixture(Distribution):
    """Each number of z is an integer times ``step`` and a mixture of logistics rounded to those: no edges, tails on both sides.

        P(z) = sum_m w_m [sigmoid((z + step/2 - mean_m) / scale_m) - sigmoid((z - step/2 - mean_m) / scale_m)]

    ``logits``, ``mean`` and ``log_scale`` are [B|1, M, *event], weights w = softmax(logits) for each number. Hoogeboom et al.
    2019, arXiv:1905.07376. Deviations: masses are exact at every scale, where the released code adds 1e-8 to
    what it takes the log of; a scale is at least step / e^4.
    """

    def __init__(self, logits: Tensor, mean: Tensor, log_scale: Tensor, step: float):
        self.step = step
        self.log_weights = full_precision(logits).log_softmax(1)
        self.location = full_precision(mean) / step  # from here on in steps
        self.rate = (log(step) - full_precision(log_scale)).clamp(MIN_LOG_RATE, MAX_LOG_RATE).exp()

    def log_prob_map(self, z: Tensor) -> Tensor:
        """log P of each number: nats [B, *event]."""
        k = (z / self.step)[:, None]
        return (self.log_weights + interval_log_prob(k - 0.5, k + 0.5, self.location, self.rate)).logsumexp(1)

    def log_prob(self, z: Tensor) -> Tensor:
        return sum_event(self.log_prob_map(z))

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draws [n, *event], without gradients; ``temperature`` scales the scales of the components."""
        log_weights, location, rate = (expand_batch(t.detach(), n) for t in (self.log_weights, self.location, self.rate))
        gumbel = -torch.empty_like(log_weights).exponential_().log()
        chosen = (log_weights + gumbel).argmax(1, keepdim=True)
        location, rate = (t.gather(1, chosen).squeeze(1) for t in (location, rate))
        u = torch.rand_like(location).clamp_min(torch.finfo(location.dtype).tiny)
        return (location + temperature * torch.logit(u) / rate).round() * self.step

    def standardize(self, z: Tensor) -> Tensor:
        """z: an integer is its own latent."""
        return z

    def place(self, latent: Tensor) -> Tensor:
        """The nearest z: what lies between two latents is rounded."""
        return (latent / self.step).round() * self.step

    @torch.no_grad()
    def code(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The part of a coder's walk that visits z [B, *event]: binary digits of z / step, the first one first.

        Yields (digits [m], log_pmf [m, 2]), see ``models.coding.coder.Codable``. Each digit says in which half of an interval
        of integers z lies, given that it lies in the interval: no table has more than two entries, no integer is beyond the
        tables, and -log of these probabilities adds up to -log P(z).
        """
        log_weights, location, rate = (t.double() for t in (self.log_weights, self.location, self.rate))
        k = (z / self.step).double()
        low, half = torch.full_like(k, -MAX_INTEGER), MAX_INTEGER
        while half >= 1:
            start, middle, end = ((low + offset - 0.5)[:, None] for offset in (0, half, 2 * half))
            left = (log_weights + interval_log_prob(start, middle, location, rate)).logsumexp(1)
            right = (log_weights + interval_log_prob(middle, end, location, rate)).logsumexp(1)
            digits = (k >= low + half).long()
            yield digits.view(-1), torch.stack([left, right], -1).view(-1, 2).log_softmax(1)
            low, half = low + half * digits, half // 2
        z.copy_(low * self.step)


def spread(components: int) -> Tensor:
    """Means to start from: apart, evenly over the data's range. ValueError for fewer than one."""
    if components < 1:
        raise ValueError(f"a mixture has at least one component; got {components}")
    return (torch.arange(components) - (components - 1) / 2) / components


class LearnedMixture(Conditional):
    """A free mixture of ``components`` for each number of ``shape``, on the grid of ``levels``: the prior of the last level.

    It starts with equal weights, and means spread over the data's range. Deviation: the released code's (priors.py) are as far
    apart as that range is wide, with scales to match.
    """

    def __init__(self, shape: Sequence[int], components: int, levels: int):
        super().__init__()
        self.step = grid_step(levels)
        size = (1, components, *shape)
        self.logits = nn.Parameter(torch.zeros(size))
        self.mean = nn.Parameter(spread(components).view(-1, *(1 for _ in shape)).expand(size).clone())
        self.log_scale = nn.Parameter(torch.full(size, LOG_SCALE_AT_START))

    def forward(self, context: Tensor | None = None) -> DiscretizedMixture:
        return DiscretizedMixture(self.logits, self.mean, self.log_scale, self.step)


class ConditionalMixture(Conditional):
    """A mixture of ``components`` for each number of [B, out, H, W], on the grid of ``levels``: the prior of what is split off.

    Means, log scales and, of several components, logits are ``conditioner(in_channels, 2 or 3 * components * out_channels)`` of a
    [B, in, H, W]. The paper's has one component. It starts as ``LearnedMixture`` does.
    """

    def __init__(
        self, in_channels: int, out_channels: int, conditioner: Callable[[int, int], nn.Module], components: int, levels: int
    ):
        super().__init__()
        self.step, self.components = grid_step(levels), components
        self.net = conditioner(in_channels, (3 if components > 1 else 2) * components * out_channels)
        self.register_buffer("offsets", spread(components).view(-1, 1, 1, 1), persistent=False)

    def forward(self, context: Tensor | None = None) -> DiscretizedMixture:
        blocks = full_precision(self.net(context)).unflatten(1, (self.components, -1))
        out_channels = blocks.shape[2] // (3 if self.components > 1 else 2)
        mean, log_scale, logits = blocks.tensor_split((out_channels, 2 * out_channels), 2)
        logits = logits if self.components > 1 else torch.zeros_like(mean)
        return DiscretizedMixture(logits, mean + self.offsets, log_scale + LOG_SCALE_AT_START, self.step)
