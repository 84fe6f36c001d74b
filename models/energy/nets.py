"""Nets from states to a scalar: the negative unnormalised log density, before any scaling."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class ConvEnergy(nn.Module):
    """The convnet of short-run MCMC (Nijkamp et al. 2019, arXiv:1904.09770): no normalisation, no pooling.

    A 3x3 convolution to ``width`` channels, ``num_halvings`` 4x4 ones of stride 2 that double the channels, and a
    convolution over all that is left; leaky ReLU between. At 3x32x32 with width 64 and three halvings this is the published
    net, whose last kernel is 4x4. Halvings that the image is too small for are left out: [B, C, H, W] -> [B].
    """

    def __init__(self, shape: Sequence[int], width: int, num_halvings: int, negative_slope: float):
        super().__init__()
        channels, height, side = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(negative_slope)]
        for _ in range(num_halvings):
            if min(height, side) < 2:
                break
            layers += [nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(negative_slope)]
            width, height, side = 2 * width, height // 2, side // 2
        self.net = nn.Sequential(*layers, nn.Conv2d(width, 1, (height, side)))

    def forward(self, u: Tensor) -> Tensor:
        return self.net(u).flatten()


class MLPEnergy(nn.Module):
    """Fully connected layers of the widths ``hidden``, softplus between: a smooth energy for low dimensions. [B, *shape] -> [B]."""

    def __init__(self, shape: Sequence[int], hidden: Sequence[int]):
        super().__init__()
        widths = [prod(shape), *hidden]
        layers = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(a, b), nn.Softplus())]
        self.net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], 1))

    def forward(self, u: Tensor) -> Tensor:
        return self.net(u).flatten()
