"""Causal convolutions by padding and cropping instead of masks (Salimans et al. 2017, arXiv:1701.05517, figure 2)."""

import torch.nn.functional as F
from torch import Tensor

from models.nn.concat_elu import Margins, pad
from models.nn.weight_norm import WeightNormConv2d, WeightNormConvTranspose2d


def down_shift(x: Tensor) -> Tensor:
    """Row r becomes row r + 1; zeros enter at the top."""
    return F.pad(x, (0, 0, 1, -1))


def right_shift(x: Tensor) -> Tensor:
    """Column c becomes column c + 1; zeros enter at the left."""
    return F.pad(x, (1, -1))


class ShiftedConv2d(WeightNormConv2d):
    """A convolution of a map to which ``margins`` of zeros are added."""

    margins: Margins

    def forward(self, x: Tensor) -> Tensor:
        return self.of_padded(pad(x, self.margins))

    def of_padded(self, x: Tensor) -> Tensor:
        """The same, of a map that has its margins already."""
        return super().forward(x)


class DownShiftedConv2d(ShiftedConv2d):
    """The output at (r, c) sees rows r - h + 1 .. r and columns c - w // 2 .. c + w // 2 (w odd) of the input.

    With stride 2, output (i, j) is the one of (2i, 2j); a map of n rows gives ceil(n / 2).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int = 1, init_scale: float = 1.0):
        super().__init__(in_channels, out_channels, kernel, stride, init_scale, padding=(0, kernel[1] // 2))
        self.margins = 0, kernel[0] - 1


class DownRightShiftedConv2d(ShiftedConv2d):
    """The output at (r, c) sees rows r - h + 1 .. r and columns c - w + 1 .. c of the input; stride as above."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int = 1, init_scale: float = 1.0):
        super().__init__(in_channels, out_channels, kernel, stride, init_scale)
        self.margins = kernel[1] - 1, kernel[0] - 1


class DownShiftedConvTranspose2d(WeightNormConvTranspose2d):
    """Stride 2, kernel (2, odd w): outputs (2i, .) and (2i + 1, .) see row i alone. [B, in, H, W] -> [B, out, 2H, 2W]."""

    def forward(self, x):
        margin = self.v.shape[3] // 2
        y = super().forward(x)
        return y[..., : 2 * x.shape[2], margin : margin + 2 * x.shape[3]]


class DownRightShiftedConvTranspose2d(WeightNormConvTranspose2d):
    """Stride 2, kernel (2, 2): the four outputs (2i + 0/1, 2j + 0/1) see (i, j) alone. [B, in, H, W] -> [B, out, 2H, 2W]."""
