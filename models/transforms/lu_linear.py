"""A learned linear map of vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import Bijection


class LULinear(Bijection):
    """z = L U x[permutation], log-det sum log u_dd, over vectors [B, D], with L unit lower and U upper triangular.

    Durkan et al. 2019 (arXiv:1906.04032), sec. 4: a fixed random permutation and a matrix that starts as the identity. One
    matrix holds all that is learned: L below the diagonal, U above, log of U's diagonal on it. In the cost of two products
    with a matrix whatever D is; Conv1x1 multiplies L and U first, which pays where many positions share them.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.factors = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("order", torch.randperm(dim))

    def _upper(self) -> Tensor:
        return self.factors.triu(1) + torch.diag(self.factors.diagonal().exp())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            h = x.to(self.factors.dtype)[:, self.order] @ self._upper().T
            return h + h @ self.factors.tril(-1).T, self._log_det(x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            h = torch.linalg.solve_triangular(self.factors, z.to(self.factors.dtype).T, upper=False, unitriangular=True)
            x = torch.linalg.solve_triangular(self._upper(), h, upper=True).T
            return x[:, self.order.argsort()], -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.factors.diagonal().sum().expand(len(x))
