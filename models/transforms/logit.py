"""From the unit interval to the whole line."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contracts import Bijection, sum_event


class Logit(Bijection):
    """z = logit(p), p = alpha + (1 - 2 alpha) x for x in [0, 1], log-det sum log(1 - 2 alpha) - log p - log(1 - p).

    RealNVP, Dinh et al. 2016 (arXiv:1605.08803), sec. 4.1. The paper writes p = alpha + (1 - alpha) x, which is infinite at
    x = 1; this symmetric form is its released code's (there data_constraint = 1 - 2 alpha = 0.9).
    """

    term = "logit"

    def __init__(self, alpha: float):
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie between 0 and 0.5; got {alpha}")
        self.alpha = alpha

    def _log_det(self, z: Tensor) -> Tensor:
        """Of the forward direction, whose -log p - log(1 - p) is softplus(z) + softplus(-z)."""
        return sum_event(F.softplus(z) + F.softplus(-z) + log(1 - 2 * self.alpha))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        return z, self._log_det(z)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha), -self._log_det(z)
