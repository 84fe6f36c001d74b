"""The planar flow."""

from __future__ import annotations

from math import expm1, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import Bijection
from models.distributions.normal import full_precision

BISECTIONS = 60
"""Halvings of the bracket in the numerical direction: from any bracket to float64 rounding."""


class Planar(Bijection):
    """x = z + u tanh(w.z + b), log |det dx/dz| = log(1 + u.w (1 - tanh^2(w.z + b))), over vectors [B, D].

    Rezende & Mohamed 2015, arXiv:1505.05770, eqs. 10 to 12. The closed form is the inverse (base -> data): a posterior
    flow. Forward solves w.x = a + u.w tanh(a + b), which increases in a = w.z, by bisection, then takes one Newton step,
    which carries the gradients. u, w and b are linear in the context [B, E], or free when ``context_dim`` is 0.

    The map is invertible for u.w > -1, so u is moved along w until u.w = softplus(u'.w + log(e - 1)) - 1. Deviation:
    the paper (appendix A.1) has no shift log(e - 1); with it u = u' where u'.w = 0, and u stays bounded as w -> 0.
    """

    def __init__(self, dim: int, context_dim: int):
        super().__init__()
        self.dim = dim
        self.free = nn.Parameter(torch.cat([0.1 * torch.randn(2 * dim), torch.zeros(1)]))
        self.amortised = nn.Linear(context_dim, 2 * dim + 1, bias=False) if context_dim else None
        if self.amortised is not None:
            nn.init.normal_(self.amortised.weight, std=0.01)

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, w [B|1, D], b and u.w [B|1, 1], u already constrained."""
        params = self.free[None] if self.amortised is None else self.free + self.amortised(context)
        u, w, b = full_precision(params).split([self.dim, self.dim, 1], 1)
        inner = (u * w).sum(1, keepdim=True)
        product = F.softplus(inner + log(expm1(1.0))) - 1
        u = u + (product - inner) * w / (w.square().sum(1, keepdim=True) + torch.finfo(w.dtype).tiny)
        return u, w, b, product

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, product = self._parameters_for(context)
        t = torch.tanh((z * w).sum(1, keepdim=True) + b)
        return z + u * t, torch.log1p(product * (1 - t * t)).squeeze(1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, product = self._parameters_for(context)
        target = (x * w).sum(1, keepdim=True)
        with torch.no_grad():
            low, high = target - product.abs(), target + product.abs()
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                above = middle + product * torch.tanh(middle + b) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            a = (low + high) / 2
            slope = 1 + product * (1 - torch.tanh(a + b).square())
        a = a - (a + product * torch.tanh(a + b) - target) / slope
        t = torch.tanh(a + b)
        return x - u * t, -torch.log1p(product * (1 - t * t)).squeeze(1)
