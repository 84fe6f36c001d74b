"""The whitening map of probabilistic principal component analysis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import Bijection
from models.nn.data_init import DataInitialized


class ProbabilisticPCA(Bijection, DataInitialized):
    """z = T (x - mean) / sigma with T^T T = (I + A A^T)^-1, A = W / sigma: standard normal z for x ~ N(mean, W W^T + sigma^2 I).

    Tipping & Bishop 1999 (J. R. Stat. Soc. B 61(3)), eqs. 2 to 7: x = W t + mean + noise over vectors [B, D], t standard normal
    of ``rank`` numbers. Of the roots T it takes one that needs no D x D matrix: with L the Cholesky factor of I + A^T A (the
    paper's M = W^T W + sigma^2 I is sigma^2 times that),

        T = I - A (L + I)^-T L^-1 A^T,  T^-1 = I + A (L + I)^-1 A^T,  log |det T| = -sum log L_ii

    (Andrews 1968, AIAA J. 6(6), for square roots of covariances). The first batch sets mean, W and sigma to their maximum
    likelihood (eqs. 7 and 8); of data that vary in fewer than ``rank`` directions, sigma^2 is at least 1e-6.
    """

    def __init__(self, dim: int, rank: int):
        super().__init__()
        if not 1 <= rank < dim:
            raise ValueError(f"rank must be at least 1 and less than the {dim} dimensions of the data; got {rank}")
        self.mean = nn.Parameter(torch.zeros(dim))
        self.weight = nn.Parameter(torch.zeros(dim, rank))
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def _initialize(self, x: Tensor) -> None:
        n, (dim, rank) = len(x), self.weight.shape
        mean = x.mean(0)
        _, values, directions = torch.linalg.svd((x - mean).double(), full_matrices=False)
        variances = values.square() / n
        noise = (variances[rank:].sum() / (dim - rank)).clamp_min(1e-6)
        self.mean.copy_(mean)
        self.weight.zero_()
        scales = (variances[:rank] - noise).clamp_min(0).sqrt()
        self.weight[:, : len(scales)] = (scales[:, None] * directions[:rank]).T.to(self.weight)
        self.log_sigma.copy_(noise.log() / 2)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """A [D, rank], L and L + I."""
        a = self.weight * torch.exp(-self.log_sigma)
        eye = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        lower = torch.linalg.cholesky(eye + a.T @ a)
        return a, lower, lower + eye

    def _log_det(self, lower: Tensor, x: Tensor) -> Tensor:
        """Of the forward direction."""
        return (-len(self.mean) * self.log_sigma - lower.diagonal().log().sum()).expand(len(x))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.require_initialized()
        if self.initializing:
            self._initialize(x)
        a, lower, shifted = self._factors()
        x = (x - self.mean) * torch.exp(-self.log_sigma)
        h = torch.linalg.solve_triangular(lower, (x @ a).T, upper=False)
        return x - torch.linalg.solve_triangular(shifted.T, h, upper=True).T @ a.T, self._log_det(lower, x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.require_initialized()
        a, lower, shifted = self._factors()
        x = z + torch.linalg.solve_triangular(shifted, (z @ a).T, upper=False).T @ a.T
        return x * torch.exp(self.log_sigma) + self.mean, -self._log_det(lower, z)

    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean of t, M^-1 W^T (x - mean): [B, rank] (Tipping & Bishop 1999, eq. 6)."""
        a, lower, _ = self._factors()
        return torch.cholesky_solve(((x - self.mean) @ a).T * torch.exp(-self.log_sigma), lower).T

    def decode(self, t: Tensor) -> Tensor:
        """The mean of x given t, W t + mean: [B, D]."""
        return t @ self.weight.T + self.mean
