"""A fixed random order of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Bijection


class Permutation(Bijection):
    """z_i = x_order[i] over the channels of [B, C, ...], log-det 0; ``order`` is drawn once and saved with the weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(x.shape[0])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z[:, self.order.argsort()], z.new_zeros(z.shape[0])
