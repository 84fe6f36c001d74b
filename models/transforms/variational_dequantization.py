"""Dequantization by a learned flow."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import sum_event
from models.transforms.dequantize import UniformDequantization


class VariationalDequantization(UniformDequantization):
    """z = (x + sigmoid(w)) / K in [0, 1], w ~ q(w | x) a conditional flow: contribution -log q(sigmoid(w) | x) - D log K.

    Flow++, Ho et al. 2019 (arXiv:1902.00275), sec. 3.1, eq. 11 and 12: log P(x) >= E_q[log p(x + u) - log q(u | x)]. It is
    trained with the model, and its noise covers the unit cube whatever its weights. ``noise(image_channels, shape)`` makes q.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int | None, noise: Callable[..., nn.Module]):
        super().__init__(levels)
        self.noise = noise(shape[0], tuple(shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w, log_prob = self.noise(self.midpoint(x) - 0.5)
        contribution = -log_prob - sum_event(F.softplus(w) + F.softplus(-w) + self.bins.log())
        return (x + torch.sigmoid(w)) / self.bins, contribution
