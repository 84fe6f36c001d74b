"""The invertible 1x1 convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import Bijection


class Conv1x1(Bijection):
    """z = W x at each position of [B, C, ...], W = P L (U + diag(s)), log-det (number of positions) sum log |s|.

    Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 3.2, eq. 10-11: W starts as a random rotation; the permutation P and the
    signs of s stay fixed. One matrix holds all that is learned: L strictly below the diagonal (which is 1 in L), U strictly
    above it, log |s| on it. Multiplied in full precision whatever autocast says, as a matrix product: float32 convolutions
    run in TF32 by default.
    """

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        factors = lower.tril(-1) + upper.triu(1) + torch.diag(diagonal.abs().log())
        self.factors = nn.Parameter(factors.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.register_buffer("order", permutation.argmax(1))  # W[i] = (L U)[order[i]]

    def _lower_upper(self) -> tuple[Tensor, Tensor]:
        diagonal = self.sign * self.factors.diagonal().exp()
        return self.factors.tril(-1) + self._identity(), self.factors.triu(1) + torch.diag(diagonal)

    def _identity(self) -> Tensor:
        return torch.eye(len(self.sign), dtype=self.factors.dtype, device=self.factors.device)

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.factors.diagonal().sum() * (x[0].numel() // x.shape[1])).expand(x.shape[0])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            lower, upper = self._lower_upper()
            return _multiply((lower @ upper)[self.order], x), self._log_det(x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Two triangular solves of size C give W^-1 = U^-1 L^-1 P^T, which then serves every position."""
        with torch.autocast(z.device.type, enabled=False):
            lower, upper = self._lower_upper()
            half = torch.linalg.solve_triangular(lower, self._identity()[:, self.order], upper=False, unitriangular=True)
            return _multiply(torch.linalg.solve_triangular(upper, half, upper=True), z), -self._log_det(z)


def _multiply(weight: Tensor, x: Tensor) -> Tensor:
    """``weight`` [C, C] times ``x`` [B, C, ...] at each position."""
    columns = x.to(weight.dtype).reshape(x.shape[0], x.shape[1], -1)
    return torch.bmm(weight.expand(x.shape[0], -1, -1), columns).view(x.shape)
