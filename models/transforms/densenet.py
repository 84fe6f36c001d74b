"""A densely connected net for couplings and split priors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """[h, relu(3x3 conv of relu(1x1 conv of h))]: [B, in, H, W] -> [B, in + growth, H, W]."""

    def __init__(self, in_channels: int, growth: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 1)
        self.conv2 = nn.Conv2d(in_channels, growth, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h, torch.relu(self.conv2(torch.relu(self.conv1(h))))], 1)


class DenseNet(nn.Module):
    """``depth`` dense layers that add ``width`` channels in all, then a 3x3 conv of zeros: [B, in, H, W] -> [B, out, H, W].

    Hoogeboom et al. 2019, arXiv:1905.07376, and its released code (networks.py). The context is ignored.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, depth: int):
        super().__init__()
        if width < depth:
            raise ValueError(f"each of {depth} layers adds some of the width={width} channels: set width to at least depth")
        ends = [in_channels + width * layer // depth for layer in range(depth + 1)]
        self.layers = nn.Sequential(*(DenseLayer(start, end - start) for start, end in zip(ends, ends[1:])))
        self.last = nn.Conv2d(in_channels + width, out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.last(self.layers(x))
