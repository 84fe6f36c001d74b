"""Gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328): a vertical and a horizontal stack, and no blind spot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoregressive.masked_conv_cache import MaskedConvCache, Rows, pointwise
from models.contracts import CausalNet
from models.nn.masked_conv import MaskedConv2d, share
from models.nn.shifted_conv import down_shift


def gate(x: Tensor, dim: int = 1) -> Tensor:
    """tanh(a) sigmoid(b) of the halves (a, b) of ``x`` (eq. 2)."""
    a, b = x.chunk(2, dim)
    return a.tanh() * b.sigmoid()


class GatedLayer(nn.Module):
    """Figure 2: v' = gate(u) and h' = h + out(gate(row(h) + link(u))), with u = column(v), for the two stacks' maps v and h.

    v holds what is above a pixel, h what is to its left too. In the ``first`` layer h is the image: mask A, and no h +.
    Labels add ``bias`` [B, 2 features, 1, 1] inside both gates (eq. 4).
    """

    def __init__(self, inputs: list[int], outputs: list[int], kernel: int, first: bool):
        super().__init__()
        features = len(outputs)
        self.first = first
        self.column = nn.Conv2d(len(inputs), 2 * features, (kernel // 2 + 1, kernel), padding=(0, kernel // 2))
        self.link = nn.Conv2d(2 * features, 2 * features, 1, bias=False)
        self.row = MaskedConv2d(inputs, 2 * outputs, (1, kernel), "A" if first else "B")
        self.out = MaskedConv2d(outputs, outputs, (1, 1), "B")

    def forward(self, v: Tensor, h: Tensor, bias_v: Tensor | None, bias_h: Tensor | None) -> tuple[Tensor, Tensor]:
        u = self.column(F.pad(v, (0, 0, self.column.kernel_size[0] - 1, 0)))
        u = u if bias_v is None else u + bias_v
        side = self.link(u)
        side = side if bias_h is None else side + bias_h
        g = self.out(gate(self.row(h) + side))
        return gate(u), g if self.first else h + g


class GatedPixelCNN(CausalNet):
    """Head parameters at a pixel from all pixels above and to the left, and from the channels before its own.

    ``num_layers`` gated layers of ``width`` features and ``kernel`` taps, a 1x1 layer of ``head_width`` features and a 1x1
    output, both with mask B and after a ReLU. The vertical stack, without masks, reads the image moved down by a row; the
    horizontal one shares its features among the ``groups`` channels. ``classes`` conditions all gates on y.

    The paper does not say what follows the last layer: the two 1x1 layers are ours, after PixelCNN's.
    """

    def __init__(self, shape: tuple[int, int, int], out_channels: int, groups: int, classes: int | None,
                 num_layers: int, width: int, head_width: int, kernel: int):
        super().__init__()
        if num_layers < 2 or kernel < 3:
            raise ValueError(f"Gated PixelCNN needs at least 2 num_layers and a kernel of at least 3; got {num_layers} and {kernel}")
        self.groups, self.shape = groups, shape
        pixel, features, head, out = (share(count, groups) for count in (shape[0], width, head_width, out_channels))
        self.layers = nn.ModuleList(
            GatedLayer(features if depth else pixel, features, kernel, first=depth == 0) for depth in range(num_layers)
        )
        self.head = nn.ModuleList(MaskedConv2d(*ends, (1, 1), "B") for ends in ((features, head), (head, out)))
        self.label = nn.Embedding(classes, num_layers * 4 * width) if classes else None
        if classes:
            nn.init.zeros_(self.label.weight)

    def biases(self, y: Tensor | None) -> Tensor | list:
        """What labels [B] add inside the gates: [layers, 2 (vertical, horizontal), B, 2 width, 1, 1]."""
        if self.label is None:
            return [(None, None)] * len(self.layers)
        return self.label(y).unflatten(1, (len(self.layers), 2, -1)).permute(1, 2, 0, 3)[..., None, None]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        v, h = down_shift(x), x
        for layer, (bias_v, bias_h) in zip(self.layers, self.biases(y)):
            v, h = layer(v, h, bias_v, bias_h)
        for layer in self.head:
            h = layer(F.relu(h))
        return h

    @torch.no_grad()
    def start(self, n: int, y: Tensor | None = None) -> Cache:
        return Cache(self, n, y)


class CachedColumn:
    """The vertical part of a layer, a row at a time; ``order`` is that of the horizontal part's outputs."""

    def __init__(self, layer: GatedLayer, bias_v: Tensor | None, bias_h: Tensor | None, n: int, width: int, order: list[int]):
        self.rows = Rows(layer.column.weight, n, width)
        self.bias = layer.column.bias if bias_v is None else layer.column.bias + bias_v[..., 0].mT
        self.link = layer.link.weight[order, :, 0, 0].T
        self.side = 0.0 if bias_h is None else bias_h[:, order, :, 0].mT

    def __call__(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v' and what the horizontal part is given, from the row v [n, W, features] above."""
        self.rows.write(v)
        u = self.rows.add_to(self.bias)
        return gate(u, -1), u @ self.link + self.side


class Cache(MaskedConvCache):
    """The vertical stack goes row by row."""

    def __init__(self, net: GatedPixelCNN, n: int, y: Tensor | None):
        super().__init__(net, net.layers[0].row, [layer.row for layer in net.layers[1:]], n)
        order = self.inner.order
        self.columns = [CachedColumn(layer, *bias, n, self.width, order) for layer, bias in zip(net.layers, net.biases(y))]
        self.layers = list(zip(self.image.layers + self.inner.layers, (pointwise(layer.out, n) for layer in net.layers)))
        self.head = [pointwise(layer, n) for layer in net.head]

    def begin_row(self) -> None:
        v, sides = self.image.finished_row()[0], []
        for column in self.columns:
            v, side = column(v)
            sides.append(side)
        self.image.begin_row(sides[0][None])
        self.inner.begin_row(torch.stack(sides[1:]))

    def outputs(self, group: int) -> Tensor:
        h = None
        for row, out in self.layers:
            if h is not None:
                row.inputs[group].copy_(h)
            a, b = row(group).chunk(2, 1)
            torch.mul(a.tanh_(), b.sigmoid_(), out=out.inputs[group])
            g = out(group)
            h = g if h is None else h + g
        for layer in self.head:
            h = layer.relu(h, group)
        return h
