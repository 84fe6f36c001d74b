"""Affine scalar maps of autoregressive flows, with the parameterisations of their papers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.transforms.maps import ScalarMap


class Affine(ScalarMap):
    """z = (x - m) exp(-a) (Papamakarios et al. 2017, arXiv:1705.07057, eqs. 4 and 5; their mu and alpha).

    Deviation: a is kept within ``bound`` by bound * tanh(a / bound).
    """

    num_params = 2

    def __init__(self, bound: float):
        super().__init__()
        self.bound = bound

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        m, a = self.unpack(params)
        log_slope = -self.bound * torch.tanh(a / self.bound)
        return (x - m) * torch.exp(log_slope), log_slope

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        m, a = self.unpack(params)
        a = self.bound * torch.tanh(a / self.bound)
        return z * torch.exp(a) + m, a


class Gate(ScalarMap):
    """z = g x + (1 - g) m, g = sigmoid(s + bias) (Kingma et al. 2016, arXiv:1606.04934, eqs. 13 and 14).

    A positive ``bias`` keeps the gate open at the start (the paper starts s near +1 or +2).
    """

    num_params = 2

    def __init__(self, bias: float):
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        m, s = self.unpack(params)
        s = s + self.bias
        return m + (x - m) * torch.sigmoid(s), F.logsigmoid(s)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        m, s = self.unpack(params)
        s = s + self.bias
        return m + (z - m) * (1 + torch.exp(-s)), -F.logsigmoid(s)


class SoftplusAffine(ScalarMap):
    """z = x scale + shift, scale = softplus(h) + ``min_scale`` (Nielsen et al. 2020, arXiv:2007.02731, released toy couplings).

    Deviation: the released scale has no floor, and underflows for an h below -100.
    """

    num_params = 2

    def __init__(self, min_scale: float):
        super().__init__()
        self.min_scale = min_scale

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, h = self.unpack(params)
        scale = F.softplus(h) + self.min_scale
        return x * scale + shift, scale.log()

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, h = self.unpack(params)
        scale = F.softplus(h) + self.min_scale
        return (z - shift) / scale, -scale.log()
