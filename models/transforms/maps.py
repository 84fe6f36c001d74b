"""Maps of single numbers, whose parameters a coupling's net predicts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distributions.normal import full_precision


class ScalarMap(nn.Module):
    """An increasing map of each number of x [B, C, ...] given its ``num_params`` parameters [B, num_params * C, ...]."""

    num_params: int

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """(z, log dz/dx), both shaped as x."""
        raise NotImplementedError

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """(x, log dx/dz), both shaped as z."""
        raise NotImplementedError

    def unpack(self, params: Tensor) -> tuple[Tensor, ...]:
        """``num_params`` tensors shaped as x, in full precision."""
        return full_precision(params).chunk(self.num_params, dim=1)


class Additive(ScalarMap):
    """z = x + shift (NICE, Dinh et al. 2014, arXiv:1410.8516, sec. 3.2): volume preserving."""

    num_params = 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x + full_precision(params), x.new_zeros(()).expand_as(x)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return z - full_precision(params), z.new_zeros(()).expand_as(z)


class SigmoidAffine(ScalarMap):
    """z = (x + shift) * sigmoid(h + 2): an affine map whose scale is bounded by 1 and starts at sigmoid(2) = 0.88.

    The paper (Kingma & Dhariwal 2018, arXiv:1807.03039, table 1) writes scale = exp(log s); this bound is its released
    code's (model.py, revnet2d_step), which trains more stably and is what the published numbers used.
    """

    num_params = 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, h = self.unpack(params)
        log_scale = F.logsigmoid(h + 2)
        return (x + shift) * log_scale.exp(), log_scale

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, h = self.unpack(params)
        log_scale = F.logsigmoid(h + 2)
        return z * (-log_scale).exp() - shift, -log_scale


class TanhAffine(ScalarMap):
    """z = x exp(s) + shift, s = scale * tanh(h), with one learned scale.

    RealNVP, Dinh et al. 2016 (arXiv:1605.08803), sec. 3.2 and 4.1. |s| is at most that scale, which starts at 1.
    """

    num_params = 2

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, h = self.unpack(params)
        s = self.scale * torch.tanh(h)
        return x * s.exp() + shift, s

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, h = self.unpack(params)
        s = self.scale * torch.tanh(h)
        return (z - shift) * (-s).exp(), -s
