"""The invertible 1x1 convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import Bijection


class Conv1x1(Bijection):
    """z = W x at each position of [B, C, ...], W = P L (U + diag(s)), log-det (number of positions) sum log |s|.

    Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 3.2, eq. 10-11: W starts as a random rotation; the permutation P and the
    signs of s stay fixed. One matrix holds all that is learned: L strictly below the diagonal (which is 1 in L), U strictly
    above it, log |s| on it. Multiplied in full precision whatever autocast says, as a matrix product: float32 convolutions
    run in TF32 by default. What comes out of images is in the channels-last memory format.
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

    def _upper(self) -> Tensor:
        return self.factors.triu(1) + torch.diag(self.sign * self.factors.diagonal().exp())

    def weight(self) -> Tensor:
        """W [C, C]."""
        upper = self._upper()
        return torch.addmm(upper, self.factors.tril(-1), upper).index_select(0, self.order)

    def log_det(self, x: Tensor) -> Tensor:
        """[B], of the forward direction."""
        return (self.factors.diagonal().sum() * (x[0].numel() // x.shape[1])).expand(x.shape[0])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            return multiply(self.weight(), x), self.log_det(x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            return multiply(inverse(self.weight()), z), -self.log_det(z)


def multiply(weight: Tensor, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """``weight`` [C, C] times ``x`` [B, C, ...] plus ``shift`` [C] at each position."""
    return F.linear(x.to(weight.dtype).movedim(1, -1), weight, shift).movedim(-1, 1)


def inverse(weight: Tensor) -> Tensor:
    """The inverse of exactly the ``weight`` [C, C] that forward multiplies by, found in float64: only the products round."""
    return torch.linalg.inv(weight.double()).to(weight.dtype)
