"""The radial flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import Bijection
from models.distributions.normal import full_precision


class Radial(Bijection):
    """x = z + beta (z - c) / (alpha + r), r = |z - c|: space expands or contracts around a centre c, over vectors [B, D].

        log |det dx/dz| = (D - 1) log(1 + beta / (alpha + r)) + log(1 + alpha beta / (alpha + r)^2)

    Rezende & Mohamed 2015, arXiv:1505.05770, eq. 14. That is the inverse (base -> data); forward solves the quadratic
    r^2 + (alpha + beta - R) r - alpha R = 0 for the distance r before a distance R after, so both directions are exact. c,
    alpha and beta are linear in the context [B, E], or free when ``context_dim`` is 0. alpha = softplus(alpha') > 0, and
    beta = softplus(beta') - alpha > -alpha keeps the map invertible (appendix A.2).
    """

    def __init__(self, dim: int, context_dim: int):
        super().__init__()
        self.dim = dim
        self.free = nn.Parameter(torch.cat([torch.randn(dim), 0.1 * torch.randn(2)]))
        self.amortised = nn.Linear(context_dim, dim + 2, bias=False) if context_dim else None
        if self.amortised is not None:
            nn.init.normal_(self.amortised.weight, std=0.01)

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """c [B|1, D], alpha and beta [B|1, 1]."""
        params = self.free[None] if self.amortised is None else self.free + self.amortised(context)
        centre, alpha, beta = full_precision(params).split([self.dim, 1, 1], 1)
        alpha = F.softplus(alpha)
        return centre, alpha, F.softplus(beta) - alpha

    def _log_det(self, r: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """Of the inverse, at distance ``r`` [B, 1] before the map."""
        h = 1 / (alpha + r)
        return ((self.dim - 1) * torch.log1p(beta * h) + torch.log1p(alpha * beta * h * h)).squeeze(1)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, alpha, beta = self._parameters_for(context)
        offset = z - centre
        r = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
        return z + beta * offset / (alpha + r), self._log_det(r, alpha, beta)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, alpha, beta = self._parameters_for(context)
        offset = x - centre
        after = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
        b = after - alpha - beta
        root = torch.sqrt(b * b + 4 * alpha * after)
        r = torch.where(b > 0, b + root, 4 * alpha * after / (root - b)) / 2  # the positive root, without cancellation
        return x - beta * offset / (alpha + r + beta), -self._log_det(r, alpha, beta)
