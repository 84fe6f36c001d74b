"""Nets that change with time: the vector fields of continuous flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ConcatSquash(nn.Module):
    """h(x, t) = (W x + b) sigmoid(a t + c) + d t, over vectors [B, in] -> [B, out] at a time t [].

    Grathwohl et al. 2019 (arXiv:1810.01367), the layer "concatsquash" of the released code (diffeq_layers/basic.py).
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(1, out_features)
        self.shift = nn.Linear(1, out_features, bias=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.view(1, 1)
        return self.linear(x) * torch.sigmoid(self.gate(t)) + self.shift(t)


class ConcatSquashMLP(nn.Module):
    """Layers of ConcatSquash with an activation between them, from vectors [B, D] and a time t [] to velocities [B, D]."""

    def __init__(self, dim: int, hidden: Sequence[int], activation: Callable[[], nn.Module]):
        super().__init__()
        sizes = [dim, *hidden, dim]
        self.layers = nn.ModuleList(ConcatSquash(*pair) for pair in zip(sizes, sizes[1:]))
        self.activation = activation()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x, t))
        return self.layers[-1](x, t)


class ConcatConv(nn.Module):
    """3x3 convolutions that also see t as one more channel, from images [B, C, H, W] and a time t [] to velocities.

    Grathwohl et al. 2019 (arXiv:1810.01367), appendix B.1; the layer "concat" of the released code. The paper's activation is
    softplus.
    """

    def __init__(self, channels: int, hidden: Sequence[int], activation: Callable[[], nn.Module]):
        super().__init__()
        sizes = [channels, *hidden, channels]
        self.layers = nn.ModuleList(nn.Conv2d(a + 1, b, 3, padding=1) for a, b in zip(sizes, sizes[1:]))
        self.activation = activation()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        plane = t.expand(x.shape[0], 1, *x.shape[2:])
        for number, layer in enumerate(self.layers):
            x = layer(torch.cat([plane, self.activation(x) if number else x], 1))
        return x
