"""The net of an energy model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ConvEnergy(nn.Module):
    """The convnet of short-run MCMC (Nijkamp et al. 2019, arXiv:1904.09770): [B, C, H, W] -> [B].

    A 3x3 convolution to ``width`` channels, ``num_halvings`` 4x4 ones of stride 2 that double the channels, and one over all
    that is left; leaky ReLU between, no normalisation. At 3x32x32 with width 64 and three halvings this is the published net,
    whose last kernel is 4x4. Once a side is down to one pixel, 1x1 convolutions stand in for the 4x4 ones: on vectors it is a
    perceptron, as the released net for the plane of arXiv:1903.12370.
    """

    def __init__(self, shape: Sequence[int], width: int, num_halvings: int, negative_slope: float):
        super().__init__()
        channels, height, side = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(negative_slope)]
        for _ in range(num_halvings):
            if min(height, side) > 1:
                layers.append(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1))
                height, side = height // 2, side // 2
            else:
                layers.append(nn.Conv2d(width, 2 * width, 1))
            layers.append(nn.LeakyReLU(negative_slope))
            width *= 2
        self.net = nn.Sequential(*layers, nn.Conv2d(width, 1, (height, side)))

    def forward(self, u: Tensor) -> Tensor:
        return self.net(u).flatten()
