"""Cached sampling for PixelCNN++: the down stream a row at a time, the down-right stream a pixel at a time.

Every convolution keeps the inputs its next output needs, so that a pixel costs its own share of one full pass, and coarse
resolutions are visited at every second row and column of the finer one alone. What a row can know at its start (the taps on
the row above, the down stream's side inputs) is computed for the whole row. Maps are channels-last here: a row is
[n, W, F], a pixel [n, F]. Effective weights are taken once, at the start. Compare Ramachandran et al. 2017, arXiv:1704.06001.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.concat_elu import concat_elu

if TYPE_CHECKING:
    from models.autoregressive.pixelcnnpp import GatedBlock, PixelCNNpp, Stream


def _taps(weight: Tensor) -> list[Tensor]:
    """[out, in, h, w] -> for each of the h rows the matrix [w in, out] that a flattened window multiplies."""
    return [row.permute(2, 1, 0).flatten(0, 1) for row in weight.unbind(2)]


class RowConv:
    """A down-shifted convolution over rows: rows go in one by one, the output is of the latest."""

    def __init__(self, conv, n: int, width: int, offset: Tensor):
        _, self.channels, height, self.kernel = conv.v.shape
        self.taps = _taps(conv.weight())
        self.offset = offset[:, None]
        self.stride = conv.stride
        self.windows = [self._windows(offset.new_zeros(n, width, self.channels))] * height

    def _windows(self, row: Tensor) -> Tensor:
        padded = F.pad(row, (0, 0, self.kernel // 2, self.kernel // 2)).flatten(1)
        return padded.unfold(1, self.kernel * self.channels, self.stride * self.channels)

    def write(self, row: Tensor, column: int = 0) -> None:
        self.windows = [*self.windows[1:], self._windows(row)]

    def read(self, column: int = 0) -> Tensor:
        return self.offset + sum(window @ tap for window, tap in zip(self.windows, self.taps))


class PixelConv:
    """A down-right-shifted convolution of two rows: pixels go in one by one, the output is of the latest.

    ``row`` holds the current row up to the latest pixel and the row above it from there on.
    """

    def __init__(self, conv, n: int, width: int, offset: Tensor):
        _, self.channels, _, self.kernel = conv.v.shape
        self.upper, self.lower = _taps(conv.weight())
        self.offset = offset[:, None]
        self.stride = conv.stride
        self.margin = self.kernel - 1
        self.row = offset.new_zeros(n, (width + self.margin) * self.channels)

    def begin_row(self, sides: Tensor | float = 0.0) -> None:
        """Take ``row`` as the row above, and ``sides`` [n, W, out] as known additions to the row's outputs."""
        above = self.row.unfold(1, self.kernel * self.channels, self.stride * self.channels)
        self.known = above @ self.upper + self.offset + sides

    def write(self, pixel: Tensor, column: int) -> None:
        first = (column + self.margin) * self.channels
        self.row[:, first : first + self.channels] = pixel

    def read(self, column: int) -> Tensor:
        window = self.row[:, column * self.channels : (column + self.kernel) * self.channels]
        return torch.addmm(self.known[:, column // self.stride], window, self.lower)


class RowGrow:
    """A down-shifted transposed convolution of stride 2: a coarse row makes two rows."""

    def __init__(self, conv, n: int, width: int):
        self.conv, self.width = conv, width

    def write(self, row: Tensor, column: int) -> None:
        self.rows = self.conv(row.mT[:, :, None]).permute(2, 0, 3, 1)[:, :, : self.width]

    def read(self, row: int, column: int) -> Tensor:
        return self.rows[row % 2]


class PixelGrow:
    """A down-right-shifted transposed convolution of stride 2: a coarse pixel makes four."""

    def __init__(self, conv, n: int, width: int):
        self.weight = conv.weight().permute(0, 2, 3, 1).flatten(1)
        self.bias = conv.b.repeat(4)
        self.pixels = [None] * ((width + 1) // 2)

    def write(self, pixel: Tensor, column: int) -> None:
        self.pixels[column] = torch.addmm(self.bias, pixel, self.weight).chunk(4, 1)

    def read(self, row: int, column: int) -> Tensor:
        return self.pixels[column // 2][2 * (row % 2) + column % 2]


class CachedBlock:
    """A gated block. ``conv`` is RowConv or PixelConv; a pixel's block takes its leader's row when the row begins."""

    def __init__(self, block: GatedBlock, conv, n: int, width: int, y: Tensor | None, follows: bool):
        offset_in, offset_out = block.conv_in.b[None], block.conv_out.b[None]
        if block.nin is not None:
            offset_in = offset_in + block.nin.b
            filters = len(block.nin.b)
            matrices = block.nin.weight().view(filters, 2, -1, filters).permute(2, 1, 3, 0).flatten(1, 2).unbind()
            self.nin_leader = matrices[0] if follows else None
            self.nin_skip = matrices[-1]
        if block.label is not None:
            offset_out = offset_out + block.label(y)
        self.conv_in = conv(block.conv_in, n, width, offset_in)
        self.conv_out = conv(block.conv_out, n, width, offset_out)

    def begin_row(self, leader: CachedBlock) -> None:
        self.conv_in.begin_row(concat_elu(leader.output, -1) @ self.nin_leader)
        self.conv_out.begin_row()

    def __call__(self, x: Tensor, column: int, skip: Tensor | None = None) -> Tensor:
        self.conv_in.write(concat_elu(x, -1), column)
        h = self.conv_in.read(column)
        if skip is not None:
            h = h + concat_elu(skip, -1) @ self.nin_skip
        self.conv_out.write(concat_elu(h, -1), column)
        self.output = x + F.glu(self.conv_out.read(column), -1)
        return self.output


class CachedStream:
    """A stream, one row (with column 0) or one pixel a call, in its own resolution's coordinates."""

    def __init__(self, stream: Stream, conv, grow, n: int, width: int, y: Tensor | None, follows: bool):
        self.before, self.after = (
            [CachedBlock(block, conv, n, width, y, follows) for block in blocks] for blocks in (stream.before, stream.after)
        )
        self.inner = None
        if stream.inner is not None:
            self.shrink = conv(stream.shrink, n, width, stream.shrink.b[None])
            self.inner = CachedStream(stream.inner, conv, grow, n, (width + 1) // 2, y, follows)
            self.grow = grow(stream.grow, n, width)

    def begin_row(self, row: int, leader: CachedStream) -> None:
        for block, leading in zip(self.before + self.after, leader.before + leader.after):
            block.begin_row(leading)
        if self.inner is not None and row % 2 == 0:
            self.shrink.begin_row()
            self.inner.begin_row(row // 2, leader.inner)

    def __call__(self, x: Tensor, row: int, column: int) -> Tensor:
        skips = [x]
        for block in self.before:
            skips.append(block(skips[-1], column))
        if self.inner is None:
            x = skips.pop()
        else:
            self.shrink.write(skips[-1], column)
            if row % 2 == 0 and column % 2 == 0:
                self.grow.write(self.inner(self.shrink.read(column), row // 2, column // 2), column // 2)
            x = self.grow.read(row, column)
        for block in self.after:
            x = block(x, column, skips.pop())
        return x


class Cache:
    """What PixelCNN++ remembers between the pixels of ``n`` samples."""

    def __init__(self, net: PixelCNNpp, n: int, y: Tensor | None):
        self.width = net.shape[2]
        self.in_down = RowConv(net.in_down, n, self.width, net.in_down.b[None])
        self.in_above = RowConv(net.in_above, n, self.width, net.in_above.b[None])
        self.in_left = PixelConv(net.in_left, n, self.width, net.in_left.b[None])
        self.down = CachedStream(net.down, RowConv, RowGrow, n, self.width, y, follows=False)
        self.right = CachedStream(net.right, PixelConv, PixelGrow, n, self.width, y, follows=True)
        self.out = net.out.weight().flatten(1).T
        self.out_bias = net.out.b
        self.zeros = net.out.b.new_zeros(n, self.width, len(net.in_down.b))

    def step(self, x_prev: Tensor | None, position: int) -> Tensor:
        """Head parameters [n, P] at ``position``; positions come in order."""
        row, column = divmod(position, self.width)
        if position:
            self.in_left.write(F.pad(x_prev, (0, 1), value=1.0), (position - 1) % self.width)
        if column == 0:
            self._begin_row(row)
        x = self.above[:, column]
        if column:
            x = x + self.in_left.read(column - 1)
        return torch.addmm(self.out_bias, F.elu(self.right(x, row, column)), self.out)

    def _begin_row(self, row: int) -> None:
        down = self.above = self.zeros
        if row:
            pixels = self.in_left.row.unflatten(1, (self.width, -1))
            self.in_down.write(pixels)
            self.in_above.write(pixels)
            down, self.above = self.in_down.read(), self.in_above.read()
        self.down(down, row, 0)
        self.in_left.begin_row()
        self.right.begin_row(row, self.down)
