"""The Diagonal BiLSTM (van den Oord et al. 2016, arXiv:1601.06759, section 3.2): diagonals, from either upper corner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoregressive.masked_conv_cache import Spatial
from models.nn.lstm_cell import lstm_cell, zero_states
from models.nn.masked_conv import MaskedConv2d
from models.nn.shifted_conv import down_shift


class DiagonalBiLSTM(nn.Module):
    """Gates at (r, c) = masked 1x1 convolution of the input there + linear maps of the states at (r - 1, c) and (r, c - 1).

    The other direction has (r, c + 1) for (r, c - 1), and its states go down one row before they are added, so that they
    have seen no later pixel. The cell is carried from (r, c -+ 1). [B, F, H, W + 1] -> [B, h, H, W + 1]. States outside the
    map are zero. ``features`` and ``cells`` name the group of each input and cell (see MaskedConv2d); states of other
    pixels are seen by every group.

    The paper skews the map so that diagonals become columns. Here the pixels are sorted by diagonal instead, so that each is
    a slice and there are no empty corners; both directions, the second with mirrored columns, are one batch.
    Deviation: with ``classes``, y adds to the gates (the paper has no labels).
    """

    margin = 1
    """How many columns wider than the image (C, H, W) its maps are: see PixelRNN."""

    def __init__(self, shape: tuple[int, int, int], features: list[int], cells: list[int], classes: int | None):
        super().__init__()
        self.shape, self.cells = (shape[1], shape[2] + self.margin), cells
        self.input_to_state = nn.ModuleList(MaskedConv2d(features, 4 * cells, (1, 1), "B") for _ in range(2))
        bound = (2 * len(cells)) ** -0.5
        self.state_to_state = nn.Parameter(bound * (2 * torch.rand(2, 2 * len(cells), 4 * len(cells)) - 1))
        self.label = nn.Embedding(classes, 8 * len(cells)) if classes else None
        if classes:
            nn.init.zeros_(self.label.weight)
        height, width = self.shape
        self.sizes = [min(d + 1, height, width, height + width - 1 - d) for d in range(height + width - 1)]
        pixels = sorted(range(height * width), key=lambda pixel: sum(divmod(pixel, width)))
        order = torch.tensor([pixels, [pixel - 2 * (pixel % width) + width - 1 for pixel in pixels]])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(1), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        gates = [conv(x) for conv in self.input_to_state]
        if self.label is not None:
            gates = [gate + label[:, :, None, None] for gate, label in zip(gates, self.label(y).chunk(2, 1))]
        gates = [gate.flatten(2).permute(2, 0, 1)[order] for gate, order in zip(gates, self.order)]
        states = self._scan(torch.stack(gates))
        left, right = (
            side[inverse].unflatten(0, self.shape).permute(2, 3, 0, 1) for side, inverse in zip(states, self.inverse)
        )
        return left + down_shift(right)

    def _scan(self, gates: Tensor) -> Tensor:
        """Gates [2, H W, B, 4 h] to states [2, H W, B, h], sorted by diagonal and, within it, by row."""
        height, width = self.shape
        hidden, cell = zero_states(gates, 2, 0, gates.shape[2], len(self.cells))
        diagonals = []
        for d, diagonal in enumerate(gates.split(self.sizes, 1)):
            top, bottom = int(d < width), int(d < height)  # until then row 0 is still there, and one more row begins
            padded = F.pad(hidden, (0, 0, 0, 0, top, bottom))
            context = torch.cat([padded[:, :-1], padded[:, 1:]], -1)  # the states above and beside
            diagonal = torch.baddbmm(diagonal.flatten(1, 2), context.flatten(1, 2), self.state_to_state).view_as(diagonal)
            hidden, cell = lstm_cell(diagonal, F.pad(cell, (0, 0, 0, 0, top - 1, bottom)))
            diagonals.append(hidden)
        return torch.cat(diagonals, 1)

    @staticmethod
    def states(lstms: Sequence[DiagonalBiLSTM], n: int, width: int, y: Tensor | None) -> DiagonalStates:
        """What the layers of a net remember between the positions of ``n`` samples."""
        return DiagonalStates(lstms, n, width, y)


class DiagonalStates:
    """Diagonal BiLSTMs of L layers: the direction from the right is run through a row when that is complete.

    ``left`` [L, n, h] are the states of the pixel before, ``row`` [L, n, W, h] those of its row so far, ``right``
    [L, n, W, h] those of the other direction in the row above.
    """

    def __init__(self, lstms: Sequence[DiagonalBiLSTM], n: int, width: int, y: Tensor | None):
        self.inputs = Spatial([lstm.input_to_state[0] for lstm in lstms], n, width)
        order, cells = self.inputs.order, lstms[0].cells
        from_left, from_right = torch.stack([lstm.state_to_state for lstm in lstms], 1)
        self.above, self.beside = from_left[..., order].chunk(2, 1)
        right_above, self.right_beside = from_right.chunk(2, 1)
        convs = [lstm.input_to_state[1] for lstm in lstms]
        self.right_matrix = torch.cat([torch.stack([conv.masked_weight()[:, :, 0, 0].T for conv in convs]), right_above], 1)
        self.right_bias = torch.stack([conv.bias for conv in convs])[:, None, None]
        self.label = 0.0
        if lstms[0].label is not None:
            labels = torch.stack([lstm.label(y) for lstm in lstms])[:, :, None]
            self.label = labels[..., : 4 * len(cells)][..., order]
            self.right_bias = self.right_bias + labels[..., 4 * len(cells) :]
        self.row, _ = zero_states(from_left, len(lstms), n, width, len(cells))
        self.right = torch.zeros_like(self.row)
        self.left, self.cell = zero_states(from_left, len(lstms), n, len(cells))
        self.counts = [cells.count(group) for group in range(max(cells) + 1)]
        self.places = [
            list(zip(left.split(self.counts, 1), cell.split(self.counts, 1))) for left, cell in zip(self.left, self.cell)
        ]

    def begin_row(self, row: int) -> None:
        if row:
            self._run_from_the_right()
        self.inputs.begin_row(project(self.row, self.above) + self.label)
        self.left.zero_()
        self.cell.zero_()

    def _run_from_the_right(self) -> None:
        seen = torch.cat([self.inputs.finished_row(), self.right], -1)
        gates = project(seen, self.right_matrix) + self.right_bias
        hidden, cell = zero_states(gates, *self.cell.shape)
        for column in reversed(range(gates.shape[2])):
            hidden, cell = lstm_cell(torch.baddbmm(gates[:, :, column], hidden, self.right_beside), cell)
            self.right[:, :, column] = hidden

    def begin_pixel(self, column: int) -> None:
        self.inputs.begin_pixel(column)
        self.inputs.known.baddbmm_(self.left, self.beside)
        self.sides = [right.split(self.counts, 1) for right in self.right[:, :, column]]

    def end_pixel(self, column: int) -> None:
        self.inputs.end_pixel(column)
        self.row[:, :, column] = self.left

    def step(self, layer: int, group: int, x: Tensor, out: Tensor) -> None:
        """Write to ``out`` [n, cells of the group] what the layer gives for its features x [n, features of the group]."""
        conv = self.inputs.layers[layer]
        conv.inputs[group].copy_(x)
        left, cell = self.places[layer][group]
        left[:], cell[:] = lstm_cell(conv(group), cell)
        torch.add(left, self.sides[layer][group], out=out)


def project(x: Tensor, matrix: Tensor) -> Tensor:
    """Every layer's linear map of its row: [L, n, W, in], [L, in, out] -> [L, n, W, out]."""
    return (x.flatten(1, 2) @ matrix).unflatten(1, x.shape[1:3])
