"""PixelRNN (van den Oord et al. 2016, arXiv:1601.06759): residual layers of convolutional LSTMs between masked convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoregressive.masked_conv_cache import Spatial, pointwise
from models.contracts import CausalNet
from models.nn.masked_conv import MaskedConv2d, share


class ResidualLSTM(nn.Module):
    """x + 1x1 mask-B convolution of lstm(x): 2h features, h cells, 2h features (figure 5)."""

    def __init__(self, lstm: Callable[..., nn.Module], shape: tuple[int, int, int], features: list[int], cells: list[int],
                 classes: int | None):
        super().__init__()
        self.lstm = lstm(shape=shape, features=features, cells=cells, classes=classes)
        self.up = MaskedConv2d(cells, features, (1, 1), "B")

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        return x + self.up(self.lstm(x, y))


class PixelRNN(CausalNet):
    """Head parameters at a pixel from the states that ``num_layers`` LSTMs reach there, on their way from the top.

    One ``first_kernel`` convolution with mask A to 2h features (h = ``width``), residual LSTM layers, two 1x1 layers of
    ``head_width`` features and a 1x1 output, all with mask B and the last three after a ReLU. ``lstm`` is RowLSTM or
    DiagonalBiLSTM without its sizes. Features and cells are shared among the ``groups`` channels, so that a channel sees
    those before it. Source: table 1, section 3.

    Deviation: where both directions meet a row (``lstm.margin``), the map is one empty column wider than the image. Its
    features are the only ones that have seen a row's last pixel and can reach, from the right, the beginning of the next row.
    """

    def __init__(self, shape: tuple[int, int, int], out_channels: int, groups: int, classes: int | None,
                 lstm: Callable[..., nn.Module], num_layers: int, width: int, head_width: int, first_kernel: int):
        super().__init__()
        if num_layers < 1 or first_kernel < 3:
            raise ValueError(
                f"PixelRNN needs num_layers of at least 1 and a first_kernel of at least 3; got {num_layers} and {first_kernel}"
            )
        self.shape, self.groups = shape, groups
        pixel, features, cells, head, out = (
            share(channels, groups) for channels in (shape[0], 2 * width, width, head_width, out_channels)
        )
        self.first = MaskedConv2d(pixel, features, (first_kernel, first_kernel), "A")
        self.layers = nn.ModuleList(ResidualLSTM(lstm, shape, features, cells, classes) for _ in range(num_layers))
        self.margin = self.layers[0].lstm.margin
        self.head = nn.ModuleList(MaskedConv2d(*ends, (1, 1), "B") for ends in ((features, head), (head, head), (head, out)))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.first(F.pad(x, (0, self.margin)))
        for layer in self.layers:
            h = layer(h, y)
        h = h[..., : x.shape[3]]
        for layer in self.head:
            h = layer(F.relu(h))
        return h

    @torch.no_grad()
    def start(self, n: int, y: Tensor | None = None) -> Cache:
        return Cache(self, n, y)


class Cache:
    """What PixelRNN remembers between the positions of ``n`` samples."""

    def __init__(self, net: PixelRNN, n: int, y: Tensor | None):
        self.groups, self.width, self.margin = net.groups, net.shape[2], net.margin
        columns = self.width + self.margin
        self.image = Spatial([net.first], n, columns)
        lstms = [layer.lstm for layer in net.layers]
        self.states = lstms[0].states(lstms, n, columns, y)
        self.ups = [pointwise(layer.up, n) for layer in net.layers]
        self.head = [pointwise(layer, n) for layer in net.head]

    def step(self, x_prev: Tensor | None, position: int) -> Tensor:
        """Head parameters [n, P / groups] at ``position``; positions come in order."""
        pixel, group = divmod(position, self.groups)
        if position:
            self.image.layers[0].inputs[group - 1].copy_(x_prev)
        if group == 0:
            self._begin_pixel(*divmod(pixel, self.width))
        x = self._features(group)
        for layer in self.head:
            x = layer.relu(x, group)
        return x

    def _features(self, group: int) -> Tensor:
        x = self.image.layers[0](group)
        for layer, up in enumerate(self.ups):
            self.states.step(layer, group, x, up.inputs[group])
            x = x + up(group)
        return x

    def _begin_pixel(self, row: int, column: int) -> None:
        if column:
            self._end(column - 1)
        else:
            if row:
                self._end(self.width - 1)
                self._visit_margin()
            self.image.begin_row()
            self.states.begin_row(row)
        self._begin(column)

    def _visit_margin(self) -> None:
        """The empty columns at the end of a row."""
        for column in range(self.width, self.width + self.margin):
            self._begin(column)
            for group, values in enumerate(self.image.layers[0].inputs):
                values.zero_()
            for group in range(self.groups):
                self._features(group)
            self._end(column)

    def _begin(self, column: int) -> None:
        self.image.begin_pixel(column)
        self.states.begin_pixel(column)

    def _end(self, column: int) -> None:
        self.image.end_pixel(column)
        self.states.end_pixel(column)
