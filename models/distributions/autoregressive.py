"""A distribution over vectors whose every element is a mixture of Gaussians given those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi

import torch
from torch import Tensor, nn

from models.contracts import Conditional, Distribution
from models.distributions.normal import full_precision
from models.nn.masked import MADE, Walk

BISECTIONS = 60
"""Halvings of the bracket in ``place``: to float64 rounding."""


class AutoregressiveMixture(Conditional):
    """log p(z) = sum_d logsumexp_m [log w_dm + log N(z_d; mean_dm, scale_dm^2)], all three from a MADE at z_<d.

    MADE MoG and the base of MAF MoG, Papamakarios et al. 2017 (arXiv:1705.07057), sec. 4.1, with 10 ``components``. Means
    start as draws of N(0, 1), which sets the components apart, scales at 1 and weights equal. Any context is ignored.
    Deviation: log scales are kept within ``bound`` by bound * tanh(. / bound), as ``Affine`` keeps its own.
    """

    def __init__(
        self, shape: Sequence[int], components: int, hidden: Sequence[int], activation: Callable[[], nn.Module], bound: float
    ):
        super().__init__()
        self.bound = bound
        if len(shape) != 1:
            raise ValueError(f"an autoregressive mixture is over vectors; got shape {tuple(shape)}: flatten it first")
        self.net = MADE(range(shape[0]), hidden, 3 * components, 0, activation)
        nn.init.zeros_(self.net.last.weight)
        nn.init.zeros_(self.net.last.bias)
        nn.init.normal_(self.net.last.bias.data.view(3, -1)[1])

    def forward(self, context: Tensor | None = None) -> MixtureChain:
        return MixtureChain(self.net, self.bound)


class MixtureChain(Distribution):
    """The distribution that a MADE's outputs, [B, 3 M, D] for M components, state."""

    def __init__(self, net: MADE, bound: float):
        self.net, self.bound = net, bound

    def _unpack(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and log scales, [B, M, ...] each."""
        logits, mean, log_scale = full_precision(params).chunk(3, 1)
        return torch.log_softmax(logits, 1), mean, self.bound * torch.tanh(log_scale / self.bound)

    def log_prob(self, z: Tensor) -> Tensor:
        log_weights, mean, log_scale = self._unpack(self.net(z))
        standard = (z.unsqueeze(1) - mean) * torch.exp(-log_scale)
        return torch.logsumexp(log_weights - log_scale - 0.5 * (standard * standard + log(2 * pi)), 1).sum(1)

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draws [n, D], reparameterised within the components they chose; ``temperature`` scales the components."""

        def draw(place: int, params: Tensor) -> Tensor:
            log_weights, mean, log_scale = self._unpack(params)
            gumbel = -torch.empty_like(log_weights).exponential_().log()
            chosen = (log_weights + gumbel).argmax(1, keepdim=True)
            noise = temperature * torch.randn_like(mean[:, :1])
            return mean.gather(1, chosen) + log_scale.gather(1, chosen).exp() * noise

        return self._walk(n, draw)

    def standardize(self, z: Tensor) -> Tensor:
        """The residual Phi^-1(F(z_d | z_<d)) of each element, standard normal when z follows this distribution."""
        return _residual(z.unsqueeze(1), *self._unpack(self.net(z)))

    def place(self, residual: Tensor) -> Tensor:
        """The inverse of ``standardize``: elements in order, each by bisection between what the components alone would give."""

        def find(place: int, params: Tensor) -> Tensor:
            log_weights, mean, log_scale = self._unpack(params)
            wanted = residual[:, place : place + 1]
            bounds = mean + log_scale.exp() * wanted
            low, high = bounds.amin(1, keepdim=True), bounds.amax(1, keepdim=True)
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                above = _residual(middle, log_weights, mean, log_scale).unsqueeze(1) > wanted
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            return (low + high) / 2

        return self._walk(len(residual), find)

    def _walk(self, n: int, choose: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The vectors [n, D] whose element at each place is ``choose(place, outputs [n, 3 M])``."""
        walk, values = Walk(self.net, n), []
        for place in range(len(self.net.input_places)):
            values.append(choose(place, walk.step(place, values[-1] if values else None)))
        return torch.cat(values, 1)


def _residual(z: Tensor, log_weights: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Phi^-1 of the mixtures' distribution functions, from whichever tail is the smaller, in float64. Sums over dim 1."""
    log_weights, standard = log_weights.double(), (z.double() - mean.double()) * torch.exp(-log_scale.double())
    lower, upper = (torch.logsumexp(log_weights + torch.special.log_ndtr(side), 1).exp() for side in (standard, -standard))
    return torch.where(lower < upper, torch.special.ndtri(lower), -torch.special.ndtri(upper)).to(z.dtype)
