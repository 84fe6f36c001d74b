"""Approximate posteriors q(z | context): a diagonal Gaussian, and one moved by bijections (planar, IAF)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from models.contracts import Bijection, Conditional
from models.distributions.flow import FlowDistribution
from models.distributions.normal import DiagonalNormal
from models.latent.nets import glorot
from models.transforms.flip import Flip


class DiagonalPosterior(Conditional):
    """N(mean, scale^2) with mean and log scale linear in the context [B, E] (Kingma & Welling 2014, arXiv:1312.6114)."""

    def __init__(self, latent_dim: int, context_dim: int):
        super().__init__()
        self.linear = glorot(nn.Linear(context_dim, 2 * latent_dim))

    def forward(self, context: Tensor | None = None) -> DiagonalNormal:
        return DiagonalNormal(*self.linear(context).chunk(2, 1))


class FlowPosterior(Conditional):
    """A diagonal Gaussian draw z_0 moved by bijections that also see the context.

    log q(z_T | x) = log N(z_0; mean, scale^2) - sum_t log |det dz_t / dz_{t-1}|
    (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 13; Kingma et al. 2016, arXiv:1606.04934). ``transform`` builds
    a bijection from (dim, context_dim) whose cheap direction is the inverse (base -> z); with ``flip`` the latent
    dimensions are reversed between steps.
    """

    def __init__(
        self,
        latent_dim: int,
        context_dim: int,
        num_steps: int,
        transform: Callable[[int, int], Bijection],
        flip: bool,
    ):
        super().__init__()
        self.base = DiagonalPosterior(latent_dim, context_dim)
        self.transforms = nn.ModuleList()
        for step in range(num_steps):
            if flip and step > 0:
                self.transforms.append(Flip())
            self.transforms.append(transform(latent_dim, context_dim))

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        return FlowDistribution(self.base(context), list(self.transforms), context)
