"""A diagonal matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import Bijection
from models.nn.data_init import DataInitialized


class Scaling(Bijection, DataInitialized):
    """z_d = exp(factor s_d) x_d for vectors [B, D], log-det factor sum s_d (Dinh et al. 2014, arXiv:1410.8516, section 3.3).

    ``factor`` 1 is the paper's; another one multiplies the rate at which Adam moves log scales. The first batch sets one s for
    all d, so that all numbers of z together have variance 1; in the paper it is 0. Scales for each d would start near 1,000
    where pixels hardly ever change, and the noise there would drive the couplings' ReLUs to zero before they learn anything.
    """

    def __init__(self, dim: int, factor: float):
        super().__init__()
        self.factor = factor
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def _initialize(self, x: Tensor) -> None:
        std = x.detach().to(self.log_scale.dtype).std(correction=0)
        self.log_scale.fill_(-torch.log(std + 1e-6) / self.factor)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.require_initialized()
        if self.initializing:
            self._initialize(x)
        log_scale = self.factor * self.log_scale
        return x * log_scale.exp(), log_scale.sum().expand(x.shape[0])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.require_initialized()
        log_scale = self.factor * self.log_scale
        return z * torch.exp(-log_scale), -log_scale.sum().expand(z.shape[0])
