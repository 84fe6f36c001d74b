"""The invertible 1x1 convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import Bijection
from models.transforms.actnorm import over_positions


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

    @staticmethod
    def coefficients(convs: Sequence[Conv1x1]) -> tuple[Tensor, Tensor]:
        """W [K, C, C] and the log-det [K] at one position, of K convolutions of C channels."""
        factors = torch.stack([conv.factors for conv in convs])
        diagonal = factors.diagonal(dim1=1, dim2=2)
        upper = factors.triu(1) + torch.diag_embed(torch.stack([conv.sign for conv in convs]) * diagonal.exp())
        product = torch.baddbmm(upper, factors.tril(-1), upper)
        order = torch.stack([conv.order for conv in convs])[:, :, None].expand_as(product)
        return product.gather(1, order), diagonal.sum(1)

    def weight(self) -> Tensor:
        """W [C, C]."""
        return self.coefficients([self])[0][0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            weight, log_det = self.coefficients([self])
            return multiply(weight[0], x), over_positions(log_det, x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            weight, log_det = self.coefficients([self])
            return multiply(inverse(weight[0]), z), -over_positions(log_det, z)


def multiply(weight: Tensor, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """``weight`` [C, C] times ``x`` [B, C, ...] plus ``shift`` [C] at each position."""
    return F.linear(x.to(weight.dtype).movedim(1, -1), weight, shift).movedim(-1, 1)


def inverse(weight: Tensor) -> Tensor:
    """The inverse of exactly the ``weight`` [..., C, C] that forward multiplies by, found in float64: only the products round."""
    return torch.linalg.inv(weight.double()).to(weight.dtype)
