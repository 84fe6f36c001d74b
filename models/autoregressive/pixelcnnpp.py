"""PixelCNN++ (Salimans et al. 2017, arXiv:1701.05517): two causal streams of gated residual blocks over a strided pyramid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.autoregressive.pixelcnnpp_cache import Cache
from models.contracts import CausalNet
from models.nn.concat_elu import padded_concat_elu
from models.nn.shifted_conv import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    down_shift,
    right_shift,
)
from models.nn.weight_norm import WeightNormConv2d


class Direction(NamedTuple):
    """Which way a stream looks: its convolutions and their kernel."""

    conv: type[nn.Module]
    conv_transpose: type[nn.Module]
    kernel: tuple[int, int]


DOWN = Direction(DownShiftedConv2d, DownShiftedConvTranspose2d, (2, 3))
DOWN_RIGHT = Direction(DownRightShiftedConv2d, DownRightShiftedConvTranspose2d, (2, 2))


class _Gate(torch.autograd.Function):
    """x + a sigmoid(b), (a, b) = h: keeps h alone, and its gradient in h's memory format, which that of ``F.glu`` loses."""

    @staticmethod
    def forward(ctx, x, h):
        ctx.save_for_backward(h)
        a, b = h.chunk(2, 1)
        return torch.addcmul(x, a, b.sigmoid())

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors[0].chunk(2, 1)
        gate = b.sigmoid()
        by_a = gradient * gate
        return gradient, torch.cat([by_a, (1 - gate).mul_(a).mul_(by_a)], 1)


class GatedBlock(nn.Module):
    """x + a sigmoid(b), with (a, b) = conv(dropout(cELU(conv(cELU x) + nin(cELU sides)))) + label projection.

    cELU is the concatenated ELU, nin a 1x1 convolution over ``num_sides`` further maps. [B, F, H, W] -> the same.
    Source: section 2.5, with the gate and the place of the labels from their released code.
    """

    def __init__(self, direction: Direction, filters: int, num_sides: int, classes: int | None, dropout: float):
        super().__init__()
        self.conv_in = direction.conv(2 * filters, filters, direction.kernel)
        self.nin = WeightNormConv2d(2 * num_sides * filters, filters) if num_sides else None
        self.conv_out = direction.conv(2 * filters, 2 * filters, direction.kernel, init_scale=0.1)
        self.label = nn.Embedding(classes, 2 * filters) if classes else None
        self.dropout = dropout
        if classes:
            nn.init.normal_(self.label.weight, std=0.05)

    def forward(self, x: Tensor, sides: list[Tensor], y: Tensor | None) -> Tensor:
        h = self.conv_in.of_padded(padded_concat_elu(x, self.conv_in.margins))
        if self.nin is not None:
            h = h + self.nin(padded_concat_elu(torch.cat(sides, 1)))
        dropout = self.dropout if self.training else 0.0
        h = self.conv_out.of_padded(padded_concat_elu(h, self.conv_out.margins, dropout))
        if self.label is not None:
            h = h + self.label(y)[:, :, None, None]
        return _Gate.apply(x, h)


class Stream(nn.Module):
    """A U-Net of gated blocks: ``num_resnet`` at this resolution, the coarser resolutions, and as many again with skips.

    A stream that follows another one (``follows``) takes the other's output of the same block as a further side input.
    ``recompute``: a block keeps its inputs alone for the backward pass, which runs it once more.
    """

    def __init__(self, direction: Direction, filters: int, num_resnet: int, num_scales: int, follows: bool,
                 classes: int | None, dropout: float, recompute: bool):
        super().__init__()
        self.recompute = recompute

        def blocks(count: int, num_skips: int) -> nn.ModuleList:
            return nn.ModuleList(
                GatedBlock(direction, filters, num_skips + follows, classes, dropout) for _ in range(count)
            )

        self.before = blocks(num_resnet, 0)
        self.inner = None
        if num_scales > 1:
            self.shrink = direction.conv(filters, filters, direction.kernel, stride=2)
            self.inner = Stream(direction, filters, num_resnet, num_scales - 1, follows, classes, dropout, recompute)
            self.grow = direction.conv_transpose(filters, filters, direction.kernel, stride=2)
        self.after = blocks(num_resnet + (num_scales > 1), 1)

    def forward(self, x: Tensor, y: Tensor | None, leader: Iterator[Tensor] | None = None) -> list[Tensor]:
        """Outputs of all blocks in order, the last at the resolution of x [B, F, H, W]; ``leader`` yields the other stream's."""
        skips, trace = [x], []

        def run(block: GatedBlock, x: Tensor, *sides: Tensor) -> Tensor:
            sides = sides if leader is None else (next(leader), *sides)
            recompute = self.recompute and torch.is_grad_enabled()
            trace.append(checkpoint(block, x, sides, y, use_reentrant=False) if recompute else block(x, sides, y))
            return trace[-1]

        for block in self.before:
            skips.append(run(block, skips[-1]))
        if self.inner is None:
            x = skips.pop()
        else:
            trace += self.inner(self.shrink(skips[-1]), y, leader)
            x = self.grow(trace[-1])[:, :, : x.shape[2], : x.shape[3]]
        for block in self.after:
            x = run(block, x, skips.pop())
        return trace


class PixelCNNpp(CausalNet):
    """Head parameters at a pixel from the pixels above it (the down stream) and above or left of it (the down-right stream).

    ``num_resnet`` blocks of ``num_filters`` channels at each of ``num_scales`` resolutions, down and up again. A map of odd
    size n shrinks to (n + 1) / 2 and its enlargement is cropped to n, so every image size works with every ``num_scales``.
    Inputs are reals in [-1, 1]; a channel of ones is appended so that the net can tell padding from grey.
    ``classes`` conditions every gate on y. Cached sampling runs without dropout. ``checkpoint`` trades time for memory: the
    backward pass computes every block again, with the same dropout.
    """

    def __init__(self, shape: tuple[int, int, int], out_channels: int, groups: int, classes: int | None,
                 num_filters: int, num_resnet: int, num_scales: int, dropout: float, checkpoint: bool = False):
        super().__init__()
        if num_resnet < 1 or num_scales < 1:
            raise ValueError(f"PixelCNN++ needs num_resnet and num_scales of at least 1; got {num_resnet} and {num_scales}")
        self.shape = shape
        channels = shape[0] + 1
        self.in_down = DownShiftedConv2d(channels, num_filters, (2, 3))
        self.in_above = DownShiftedConv2d(channels, num_filters, (1, 3))
        self.in_left = DownRightShiftedConv2d(channels, num_filters, (2, 1))
        self.down = Stream(DOWN, num_filters, num_resnet, num_scales, False, classes, dropout, checkpoint)
        self.right = Stream(DOWN_RIGHT, num_filters, num_resnet, num_scales, True, classes, dropout, checkpoint)
        self.out = WeightNormConv2d(num_filters, out_channels)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        down = self.down(down_shift(self.in_down(x)), y)
        right = self.right(down_shift(self.in_above(x)) + right_shift(self.in_left(x)), y, iter(down))
        return self.out(F.elu(right[-1]))

    @torch.no_grad()
    def start(self, n: int, y: Tensor | None = None) -> Cache:
        return Cache(self, n, y)
