"""Activation normalisation and the 1x1 convolution after it, as one matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Bijection
from models.transforms.actnorm import ActNorm
from models.transforms.conv1x1 import Conv1x1, inverse, multiply


class NormedConv1x1(Bijection):
    """z = W (x + bias) exp(log_scale) at each position: what ``norm`` and then ``conv`` do, in one pass over x.

    Both belong to the Sequential that pairs them.
    """

    def __init__(self, norm: ActNorm, conv: Conv1x1):
        super().__init__()
        self.norm, self.conv = norm, conv

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        norm, conv = self.norm, self.conv
        norm.require_initialized()
        if norm.initializing:
            x, contribution = norm(x)
            z, log_det = conv(x)
            return z, contribution + log_det
        with torch.autocast(x.device.type, enabled=False):
            (scale, shift), weight = norm.coefficients(), conv.weight()
            return multiply(weight * scale, x, weight @ shift), self._log_det(x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        norm, conv = self.norm, self.conv
        with torch.autocast(z.device.type, enabled=False):
            scale, _ = norm.coefficients()
            return multiply(inverse(conv.weight() * scale), z, -norm.bias), -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.norm.log_det(x) + self.conv.log_det(x)
