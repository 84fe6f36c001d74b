"""Encoders and decoders of a VAE: perceptrons and residual convolutional nets, for images of any height and width.

An encoder maps integers ``x`` [B, C, H, W] and one-hot labels [B, N] (None when built with ``labels=0``) to
[B, features]; a decoder maps vectors [B, inputs] to head parameters [B, P, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import DataSpec


def glorot(layer: nn.Linear) -> nn.Linear:
    """The layer with Glorot-uniform weights and zero biases (Glorot & Bengio 2010)."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def perceptron(sizes: Sequence[int], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """Linear layers of the given ``sizes``, each followed by an activation."""
    return [layer for a, b in zip(sizes, sizes[1:]) for layer in (glorot(nn.Linear(a, b)), activation())]


class Encoder(nn.Module):
    """What encoders share: integers {0..K-1} become reals in [0, 1]; continuous data stay as they are."""

    features: int

    def __init__(self, spec: DataSpec):
        super().__init__()
        self.top = 1 if spec.levels is None else spec.levels - 1

    def scale(self, x: Tensor) -> Tensor:
        return x.to(next(self.parameters()).dtype) / self.top

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError


class MLPEncoder(Encoder):
    """A Glorot-initialised perceptron over the flattened image and the labels; every layer is activated."""

    def __init__(self, spec: DataSpec, labels: int, hidden: Sequence[int], activation: Callable[[], nn.Module]):
        super().__init__(spec)
        self.features = hidden[-1]
        self.net = nn.Sequential(*perceptron([spec.dims + labels, *hidden], activation))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = self.scale(x).flatten(1)
        return self.net(x if labels is None else torch.cat([x, labels], 1))


class MLPDecoder(nn.Module):
    """A Glorot-initialised perceptron whose last layer is linear and gives every head parameter of every pixel."""

    def __init__(self, inputs: int, outputs: Sequence[int], hidden: Sequence[int], activation: Callable[[], nn.Module]):
        super().__init__()
        sizes = [inputs, *hidden]
        last = glorot(nn.Linear(sizes[-1], prod(outputs)))
        self.net = nn.Sequential(*perceptron(sizes, activation), last, nn.Unflatten(1, tuple(outputs)))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class ResidualBlock(nn.Module):
    """h + conv(elu(conv(elu(h)))) with 3 x 3 kernels; a 1 x 1 convolution on the skip path where width or size change."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if (inputs, stride) == (outputs, 1) else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, h: Tensor) -> Tensor:
        return self.skip(h) + self.second(F.elu(self.first(F.elu(h))))


def pyramid(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Sizes after 0, 1, ..., ``levels`` halvings, each rounded up: 28 -> 28, 14, 7, 4."""
    sizes = [(height, width)]
    for _ in range(levels):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes


class ConvEncoder(Encoder):
    """A residual block of stride 2 for each entry of ``channels``, then one linear layer; ELU throughout.

    After the MNIST encoder of Kingma et al. 2016 (arXiv:1606.04934, appendix C: channels 16, 32, 32 and 450 features),
    without its weight normalization. Labels enter as constant planes.
    """

    def __init__(self, spec: DataSpec, labels: int, channels: Sequence[int], features: int):
        super().__init__(spec)
        c, h, w = spec.shape
        self.features = features
        widths = [c + labels, *channels]
        blocks = [ResidualBlock(a, b, stride=2) for a, b in zip(widths, channels)]
        small = pyramid(h, w, len(channels))[-1]
        head = [nn.ELU(), nn.Flatten(), nn.Linear(widths[-1] * prod(small), features), nn.ELU()]
        self.net = nn.Sequential(*blocks, *head)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = self.scale(x)
        if labels is not None:
            x = torch.cat([x, labels[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
        return self.net(x)


class ConvDecoder(nn.Module):
    """The mirror of ``ConvEncoder``: two linear layers, then nearest-neighbour upsampling and a residual block a level.

    Upsampling goes to the sizes the encoder passed through, so that 28 x 28 and 28 x 20 come back exactly.
    """

    def __init__(self, inputs: int, outputs: Sequence[int], channels: Sequence[int], features: int):
        super().__init__()
        p, h, w = outputs
        *self.sizes, small = pyramid(h, w, len(channels))
        self.dense = nn.Sequential(
            *(nn.Linear(inputs, features), nn.ELU(), nn.Linear(features, channels[-1] * prod(small))),
            nn.Unflatten(1, (channels[-1], *small)),
        )
        widths = [channels[0], *channels]
        self.blocks = nn.ModuleList(ResidualBlock(b, a, stride=1) for a, b in zip(widths, channels))
        self.last = nn.Conv2d(channels[0], p, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.dense(z)
        for block, size in zip(reversed(self.blocks), reversed(self.sizes)):
            h = block(F.interpolate(h, size=size, mode="nearest"))
        return self.last(F.elu(h))
