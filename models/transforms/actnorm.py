"""Activation normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import Bijection
from models.nn.data_init import DataInitialized

LOG_SCALE_FACTOR = 3.0
"""The released code of Glow learns a third of every log scale (tfops.py, logscale_factor), which triples its learning rate."""


class ActNorm(Bijection, DataInitialized):
    """z = (x + bias) exp(log_scale) for each channel of [B, C, ...], log-det (number of positions) sum log_scale.

    The first batch sets bias and scale so that each channel of z has mean 0 and variance 1 over batch and positions
    (Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 3.1).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """scale and shift [C] of z = x scale + shift."""
        self.require_initialized()
        scale = torch.exp(LOG_SCALE_FACTOR * self.log_scale)
        return scale, self.bias * scale

    def log_det(self, x: Tensor) -> Tensor:
        """[B], of the forward direction."""
        return (LOG_SCALE_FACTOR * self.log_scale.sum() * (x[0].numel() // x.shape[1])).expand(x.shape[0])

    def _initialize(self, x: Tensor) -> None:
        by_channel = x.detach().transpose(0, 1).flatten(1).to(self.bias.dtype)
        std, mean = torch.std_mean(by_channel, dim=1, correction=0)
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(std + 1e-6) / LOG_SCALE_FACTOR)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.require_initialized()
        if self.initializing:
            self._initialize(x)
        scale, shift = (v.view(-1, *[1] * (x.dim() - 2)) for v in self.coefficients())
        return torch.addcmul(shift, x, scale), self.log_det(x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scale, shift = (v.view(-1, *[1] * (z.dim() - 2)) for v in self.coefficients())
        return (z - shift) / scale, -self.log_det(z)
