"""Cached sampling through masked convolutions: every output is computed once, as soon as all it sees is known.

What a masked convolution reads divides into the rows above, which are known when a row begins; the pixels to the left, which
are known when a pixel begins; and the pixel itself, of which one group of features after another becomes known. The first
two are taken for all convolutions of one shape together. What remains for each layer and group is one small matrix product
between fixed places. Maps are channels-last here. Compare Ramachandran et al. 2017, arXiv:1704.06001.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contracts import CausalNet
from models.nn.masked_conv import MaskedConv2d


class Pointwise:
    """What a masked convolution takes from the pixel itself: group g of its outputs from the first groups of its inputs.

    ``pixel`` [n, inputs] is where its inputs lie; ``known`` [n, outputs] or [outputs], group by group, is all the rest.
    """

    def __init__(self, conv: MaskedConv2d, pixel: Tensor, known: Tensor):
        matrix = conv.masked_weight()[:, :, -1, conv.left].T
        groups = range(max(conv.outputs) + 1)
        owned = [[i for i, owner in enumerate(conv.outputs) if owner == group] for group in groups]
        self.inputs = pixel.split([conv.inputs.count(group) for group in groups], 1)
        self.seen = [pixel[:, : conv.visible(group)] for group in groups]
        self.matrices = [matrix[: seen.shape[1], outputs].contiguous() for seen, outputs in zip(self.seen, owned)]
        self.known = known.split([len(outputs) for outputs in owned], -1)

    def __call__(self, group: int) -> Tensor:
        """The outputs of ``group`` [n, outputs]. Its inputs have been written to ``inputs[group]``."""
        return torch.addmm(self.known[group], self.seen[group], self.matrices[group])

    def relu(self, x: Tensor, group: int) -> Tensor:
        """The outputs for inputs relu(``x``)."""
        torch.clamp_min(x, 0, out=self.inputs[group])
        return self(group)


def pointwise(conv: MaskedConv2d, n: int) -> Pointwise:
    """A 1x1 convolution, with a pixel of its own."""
    return Pointwise(conv, conv.bias.new_zeros(n, len(conv.inputs)), conv.bias)


class Rows:
    """Convolutions ``weight`` [..., outputs, inputs, h, w] of whole rows [..., n, W, inputs], which go in one by one.

    The output row is that of the latest input row, the last of the h that are kept. No rows, no kernel: h may be 0.
    """

    def __init__(self, weight: Tensor, n: int, width: int):
        *_, inputs, height, self.kernel = weight.shape
        self.shape = n, width
        self.taps = [row.transpose(-1, -3).flatten(-3, -2).contiguous() for row in weight.unbind(-2)]
        self.windows = [weight.new_zeros(*weight.shape[:-4], n * width, self.kernel * inputs)] * height

    def write(self, row: Tensor) -> None:
        if self.taps:
            margin = self.kernel // 2
            padded = F.pad(row, (0, 0, margin, margin)).flatten(-2)
            windows = padded.unfold(-1, self.kernel * row.shape[-1], row.shape[-1]).flatten(-3, -2)
            self.windows = [*self.windows[1:], windows]

    def add_to(self, sides: Tensor | float) -> Tensor:
        """``sides`` plus the output row: [..., n, W, outputs]."""
        for windows, tap in zip(self.windows, self.taps):
            sides = sides + (windows @ tap).unflatten(-2, self.shape)
        return sides


class Spatial:
    """L masked convolutions of one shape, all with the same owners; ``layers`` are their Pointwise parts."""

    def __init__(self, convs: Sequence[MaskedConv2d], n: int, width: int):
        first = convs[0]
        self.order = sorted(range(len(first.outputs)), key=first.outputs.__getitem__)  # group by group
        weight = torch.stack([conv.masked_weight() for conv in convs])[:, self.order]
        depth, outputs, self.inputs, *_ = weight.shape
        self.margin = first.left * self.inputs
        self.above = Rows(weight[:, :, :, :-1], n, width)
        self.left = weight[:, :, :, -1, : first.left].permute(0, 3, 2, 1).flatten(1, 2).contiguous()
        self.row = weight.new_zeros(depth, n, (first.left + width) * self.inputs)  # from left of the image on
        self.bias = torch.stack([conv.bias for conv in convs])[:, None, None, self.order]
        self.pixel = weight.new_zeros(depth, n, self.inputs)
        self.known = weight.new_zeros(depth, n, outputs)
        self.layers = [Pointwise(*parts) for parts in zip(convs, self.pixel, self.known)]

    def finished_row(self) -> Tensor:
        """The inputs at the latest row [L, n, W, inputs]; zeros when there is none."""
        return self.row[:, :, self.margin :].unflatten(2, (-1, self.inputs))

    def begin_row(self, sides: Tensor | float = 0.0) -> None:
        """Take what lies above, and ``sides`` [L, n, W, outputs] as further additions to the outputs of the row."""
        self.above.write(self.finished_row())
        self.line = self.above.add_to(self.bias + sides).permute(2, 0, 1, 3).contiguous()  # [W, L, n, outputs]

    def begin_pixel(self, column: int) -> None:
        """Take what lies left of ``column``."""
        begin = column * self.inputs
        left = self.row[:, :, begin : begin + self.margin]
        self.known.copy_(torch.baddbmm(self.line[column], left, self.left))

    def end_pixel(self, column: int) -> None:
        """Keep the inputs of the finished pixel."""
        begin = self.margin + column * self.inputs
        self.row[:, :, begin : begin + self.inputs] = self.pixel


class MaskedConvCache:
    """What a net remembers between the positions of ``n`` samples: ``first`` reads the image, and all of ``inner`` are alike."""

    def __init__(self, net: CausalNet, first: MaskedConv2d, inner: Sequence[MaskedConv2d], n: int):
        self.groups, self.width = net.groups, net.shape[2]
        self.image, self.inner = Spatial([first], n, self.width), Spatial(inner, n, self.width)

    def step(self, x_prev: Tensor | None, position: int) -> Tensor:
        """Head parameters [n, P / groups] at ``position``; positions come in order."""
        pixel, group = divmod(position, self.groups)
        if position:
            self.image.layers[0].inputs[group - 1].copy_(x_prev)
        if group == 0:
            column = pixel % self.width
            if pixel:
                self.image.end_pixel((column - 1) % self.width)
                self.inner.end_pixel((column - 1) % self.width)
            if column == 0:
                self.begin_row()
            self.image.begin_pixel(column)
            self.inner.begin_pixel(column)
        return self.outputs(group)

    def begin_row(self) -> None:
        """Begin a row of ``image`` and ``inner``."""
        raise NotImplementedError

    def outputs(self, group: int) -> Tensor:
        """Head parameters of ``group`` at the pixel that has begun."""
        raise NotImplementedError
