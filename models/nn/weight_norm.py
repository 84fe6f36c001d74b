"""Weight normalisation with data-dependent initialisation (Salimans & Kingma 2016, arXiv:1602.07868, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.data_init import DataInitialized


class WeightNorm(DataInitialized):
    """A linear map ``y = W x + b`` with ``W = g v / |v|``, one length ``g`` and one norm for each output channel.

    The initialising batch sets g and b so that every output channel has mean 0 and standard deviation ``init_scale``.
    Deviation: a channel that hardly varies on that batch (standard deviation at most 0.01: a constant image, a 1x1 map)
    keeps g = ``init_scale`` where dividing by its spread would blow it up on the next batch.
    """

    def __init__(self, shape: tuple[int, ...], out_axis: int, init_scale: float):
        super().__init__()
        out = shape[out_axis]
        self.v = nn.Parameter(0.05 * torch.randn(shape))
        self.g = nn.Parameter(torch.full((out,), float(init_scale)))
        self.b = nn.Parameter(torch.zeros(out))
        self.init_scale = init_scale
        self._norm_axes = [axis for axis in range(len(shape)) if axis != out_axis]
        self._g_shape = [out if axis == out_axis else 1 for axis in range(len(shape))]

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply ``weight`` and ``bias`` to ``x``; the output's channels are on axis 1."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        """The effective weight g v / |v|, of v's shape."""
        self.require_initialized()
        return self.v * (self.g.view(self._g_shape) / torch.linalg.vector_norm(self.v, dim=self._norm_axes, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.initializing:
            self._fit(x)
        return self.linear_map(x, self.weight(), self.b)

    def _fit(self, x: Tensor) -> None:
        self.g.fill_(1.0)
        y = self.linear_map(x, self.weight(), None).movedim(1, 0).flatten(1)
        mean, std = y.mean(1), y.std(1, correction=0)
        self.g.copy_(torch.where(std > 0.01, self.init_scale / std, self.init_scale))
        self.b.copy_(-mean * self.g)


class WeightNormLinear(WeightNorm):
    """[B, in] -> [B, out]."""

    def __init__(self, in_features: int, out_features: int, init_scale: float = 1.0):
        super().__init__((out_features, in_features), 0, init_scale)

    def linear_map(self, x, weight, bias):
        return F.linear(x, weight, bias)


class WeightNormConv2d(WeightNorm):
    """[B, in, H, W] -> [B, out, H', W'], of maps with ``padding`` zeros at top and bottom and at left and right."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int] = (1, 1), stride: int = 1,
                 init_scale: float = 1.0, padding: tuple[int, int] = (0, 0)):
        super().__init__((out_channels, in_channels, *kernel), 0, init_scale)
        self.stride, self.padding = stride, padding

    def linear_map(self, x, weight, bias):
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class WeightNormConvTranspose2d(WeightNorm):
    """[B, in, H, W] -> [B, out, (H - 1) stride + kernel, ...], without cropping."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int = 1, init_scale: float = 1.0):
        super().__init__((in_channels, out_channels, *kernel), 1, init_scale)
        self.stride = stride

    def linear_map(self, x, weight, bias):
        return F.conv_transpose2d(x, weight, bias, self.stride)
