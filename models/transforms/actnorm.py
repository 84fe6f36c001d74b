"""Activation normalisation."""

from __future__ import annotations

from collections.abc import Sequence

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

    @staticmethod
    def coefficients(norms: Sequence[ActNorm]) -> tuple[Tensor, Tensor, Tensor]:
        """scale and shift [K, C] of z = x scale + shift, and the log-det [K] at one position, of K norms of C channels."""
        for norm in norms:
            norm.require_initialized()
        log_scale = LOG_SCALE_FACTOR * torch.stack([norm.log_scale for norm in norms])
        scale = log_scale.exp()
        return scale, torch.stack([norm.bias for norm in norms]) * scale, log_scale.sum(1)

    def _initialize(self, x: Tensor) -> None:
        by_channel = x.detach().transpose(0, 1).flatten(1).to(self.bias.dtype)
        std, mean = torch.std_mean(by_channel, dim=1, correction=0)
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(std + 1e-6) / LOG_SCALE_FACTOR)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.require_initialized()
        if self.initializing:
            self._initialize(x)
        scale, shift, log_det = self.coefficients([self])
        return torch.addcmul(channels(shift, x), x, channels(scale, x)), over_positions(log_det, x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scale, shift, log_det = self.coefficients([self])
        return (z - channels(shift, z)) / channels(scale, z), -over_positions(log_det, z)


def channels(vector: Tensor, x: Tensor) -> Tensor:
    """``vector``, one number for each channel of x [B, C, ...], shaped to meet it."""
    return vector.view(-1, *[1] * (x.dim() - 2))


def over_positions(log_det: Tensor, x: Tensor) -> Tensor:
    """[B]: the log-det at one position times the number of positions of x [B, C, ...]."""
    return (log_det * (x[0].numel() // x.shape[1])).expand(x.shape[0])
