"""Residual conditioners of couplings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """h + W2 dropout(relu(W1 relu(h))), W2 small at the start."""

    def __init__(self, layer: Callable[[], nn.Module], dropout: float):
        super().__init__()
        self.first, self.second, self.dropout = layer(), layer(), nn.Dropout(dropout)
        for parameter in self.second.parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.dropout(torch.relu(self.first(torch.relu(h)))))


class _Residual(nn.Module):
    """first - blocks - last, whose output is zero at the start. A context is ignored."""

    def __init__(self, first: nn.Module, blocks: list[nn.Module], last: nn.Module):
        super().__init__()
        self.first, self.blocks, self.last = first, nn.Sequential(*blocks), last
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.last(self.blocks(self.first(x)))


class ResidualMLP(_Residual):
    """A residual perceptron, [B, in] -> [B, out] (Durkan et al. 2019, arXiv:1906.04032, sec. 5.1 and the released code)."""

    def __init__(self, in_channels: int, out_channels: int, width: int, num_blocks: int, dropout: float):
        blocks = [_Block(lambda: nn.Linear(width, width), dropout) for _ in range(num_blocks)]
        super().__init__(nn.Linear(in_channels, width), blocks, nn.Linear(width, out_channels))


class ResidualConv(_Residual):
    """1x1 conv - blocks of two 3x3 convs - 1x1 conv, [B, in, H, W] -> [B, out, H, W] (Durkan et al. 2019, sec. 5.3).

    Deviation: the released blocks have batch normalisation.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, num_blocks: int, dropout: float):
        blocks = [_Block(lambda: nn.Conv2d(width, width, 3, padding=1), dropout) for _ in range(num_blocks)]
        super().__init__(nn.Conv2d(in_channels, width, 1), blocks, nn.Conv2d(width, out_channels, 1))
