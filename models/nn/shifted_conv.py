"""Causal convolutions by padding and cropping instead of masks (Salimans et al. 2017, arXiv:1701.05517, figure 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.weight_norm import WeightNormConv2d, WeightNormConvTranspose2d


def concat_elu(x: Tensor, dim: int = 1) -> Tensor:
    """ELU of x and of -x, side by side: [..., C, ...] -> [..., 2C, ...]."""
    return F.elu(torch.cat([x, -x], dim), inplace=True)


def down_shift(x: Tensor) -> Tensor:
    """Row r becomes row r + 1; zeros enter at the top."""
    return F.pad(x, (0, 0, 1, -1))


def right_shift(x: Tensor) -> Tensor:
    """Column c becomes column c + 1; zeros enter at the left."""
    return F.pad(x, (1, -1))


class DownShiftedConv2d(WeightNormConv2d):
    """The output at (r, c) sees rows r - h + 1 .. r and columns c - w // 2 .. c + w // 2 (w odd) of the input.

    With stride 2, output (i, j) is the one of (2i, 2j); a map of n rows gives ceil(n / 2).
    """

    def forward(self, x):
        h, w = self.v.shape[2:]
        return super().forward(F.pad(x, (w // 2, w // 2, h - 1, 0)))


class DownRightShiftedConv2d(WeightNormConv2d):
    """The output at (r, c) sees rows r - h + 1 .. r and columns c - w + 1 .. c of the input; stride as above."""

    def forward(self, x):
        h, w = self.v.shape[2:]
        return super().forward(F.pad(x, (w - 1, 0, h - 1, 0)))


class DownShiftedConvTranspose2d(WeightNormConvTranspose2d):
    """Stride 2, kernel (2, odd w): outputs (2i, .) and (2i + 1, .) see row i alone. [B, in, H, W] -> [B, out, 2H, 2W]."""

    def forward(self, x):
        margin = self.v.shape[3] // 2
        y = super().forward(x)
        return y[..., : 2 * x.shape[2], margin : margin + 2 * x.shape[3]]


class DownRightShiftedConvTranspose2d(WeightNormConvTranspose2d):
    """Stride 2, kernel (2, 2): the four outputs (2i + 0/1, 2j + 0/1) see (i, j) alone. [B, in, H, W] -> [B, out, 2H, 2W]."""
