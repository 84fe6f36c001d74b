"""PixelCNN (van den Oord et al. 2016, arXiv:1601.06759): a residual net of masked convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoregressive.masked_conv_cache import MaskedConvCache, pointwise
from models.contracts import CausalNet
from models.nn.masked_conv import MaskedConv2d, share


class ResidualBlock(nn.Module):
    """x + grow(relu(conv(relu(shrink(relu x))) + bias)): 2h -> h -> h -> 2h features. Source: figure 5, left."""

    def __init__(self, wide: list[int], narrow: list[int], kernel: int):
        super().__init__()
        self.shrink = MaskedConv2d(wide, narrow, (1, 1), "B")
        self.conv = MaskedConv2d(narrow, narrow, (kernel, kernel), "B")
        self.grow = MaskedConv2d(narrow, wide, (1, 1), "B")

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        h = self.conv(F.relu(self.shrink(F.relu(x))))
        return x + self.grow(F.relu(h if bias is None else h + bias))


class PixelCNN(CausalNet):
    """Head parameters at a pixel from the pixels above and to the left, and from the channels before its own.

    One ``first_kernel`` convolution with mask A, ``num_blocks`` residual blocks of 2h -> h -> 2h features (h = ``width``) with
    ``kernel`` convolutions, two 1x1 layers of ``head_width`` features, and a 1x1 output; all with mask B and after a ReLU.
    Features are shared among the ``groups`` channels, so that a channel sees those before it. Source: table 1, section 3.

    The net has the paper's blind spot: with first_kernel 2k + 1 and kernel 2m + 1, a rows up it sees no further than
    k + (a - 1) m columns to the right, however deep it is.

    ``classes`` adds a bias for each label to every block's convolution, which the paper does not have.
    """

    def __init__(self, shape: tuple[int, int, int], out_channels: int, groups: int, classes: int | None,
                 num_blocks: int, width: int, head_width: int, first_kernel: int, kernel: int):
        super().__init__()
        if num_blocks < 1 or min(first_kernel, kernel) < 3:
            raise ValueError(
                f"PixelCNN needs at least 1 num_blocks and kernels of at least 3; got {num_blocks}, {first_kernel} and {kernel}"
            )
        self.groups, self.shape = groups, shape
        pixel, wide, narrow, head, out = (
            share(features, groups) for features in (shape[0], 2 * width, width, head_width, out_channels)
        )
        self.first = MaskedConv2d(pixel, wide, (first_kernel, first_kernel), "A")
        self.blocks = nn.ModuleList(ResidualBlock(wide, narrow, kernel) for _ in range(num_blocks))
        self.head = nn.ModuleList(MaskedConv2d(*ends, (1, 1), "B") for ends in ((wide, head), (head, head), (head, out)))
        self.label = nn.Embedding(classes, num_blocks * width) if classes else None
        if classes:
            nn.init.zeros_(self.label.weight)

    def biases(self, y: Tensor | None) -> Tensor | list[None]:
        """What labels [B] add inside each block: [blocks, B, width, 1, 1]."""
        if self.label is None:
            return [None] * len(self.blocks)
        return self.label(y).unflatten(1, (len(self.blocks), -1)).transpose(0, 1)[..., None, None]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.first(x)
        for block, bias in zip(self.blocks, self.biases(y)):
            h = block(h, bias)
        for layer in self.head:
            h = layer(F.relu(h))
        return h

    @torch.no_grad()
    def start(self, n: int, y: Tensor | None = None) -> Cache:
        return Cache(self, n, y)


class Cache(MaskedConvCache):
    def __init__(self, net: PixelCNN, n: int, y: Tensor | None):
        super().__init__(net, net.first, [block.conv for block in net.blocks], n)
        self.blocks = [
            (pointwise(block.shrink, n), conv, pointwise(block.grow, n)) for block, conv in zip(net.blocks, self.inner.layers)
        ]
        self.head = [pointwise(layer, n) for layer in net.head]
        self.biases = 0.0 if y is None else net.biases(y)[..., 0].mT

    def begin_row(self) -> None:
        self.image.begin_row()
        self.inner.begin_row(self.biases)

    def outputs(self, group: int) -> Tensor:
        x = self.image.layers[0](group)
        for shrink, conv, grow in self.blocks:
            h = conv.relu(shrink.relu(x, group), group)
            x = x + grow.relu(h, group)
        for layer in self.head:
            x = layer.relu(x, group)
        return x
