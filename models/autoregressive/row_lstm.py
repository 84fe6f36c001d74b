"""The Row LSTM (van den Oord et al. 2016, arXiv:1601.06759, section 3.1): rows from the top, each of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoregressive.masked_conv_cache import Rows, Spatial
from models.nn.lstm_cell import lstm_cell, zero_states
from models.nn.masked_conv import MaskedConv2d


class RowLSTM(nn.Module):
    """Gates of row r = masked 1 x k convolution of the input's row r + 1 x k convolution of the states of row r - 1.

    [B, F, H, W] -> [B, h, H, W]. A pixel's context is a triangle, which from row to row widens by k // 2 on each side;
    pixels outside it are out of sight, however near. States above the image are zero. ``features`` and ``cells`` name the
    group of each input and cell (see MaskedConv2d); states of the row above are seen by every group.
    Deviation: with ``classes``, y adds to the gates (the paper has no labels).
    """

    margin = 0
    """How many columns wider than the image (C, H, W) its maps are."""

    def __init__(self, shape: tuple[int, int, int], features: list[int], cells: list[int], classes: int | None, kernel: int):
        super().__init__()
        self.kernel, self.cells = kernel, cells
        self.input_to_state = MaskedConv2d(features, 4 * cells, (1, kernel), "B")
        bound = (kernel * len(cells)) ** -0.5
        self.state_to_state = nn.Parameter(bound * (2 * torch.rand(kernel * len(cells), 4 * len(cells)) - 1))
        self.label = nn.Embedding(classes, 4 * len(cells)) if classes else None
        if classes:
            nn.init.zeros_(self.label.weight)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        gates = self.input_to_state(x)
        if self.label is not None:
            gates = gates + self.label(y)[:, :, None, None]
        gates = gates.permute(2, 3, 0, 1).contiguous()  # [H, W, B, 4 h]
        hidden, cell = zero_states(gates, *gates.shape[1:3], len(self.cells))
        rows = []
        for row in gates:
            context = neighbours(hidden, self.kernel)
            row = torch.addmm(row.flatten(0, 1), context.flatten(0, 1), self.state_to_state).view_as(row)
            hidden, cell = lstm_cell(row, cell)
            rows.append(hidden)
        return torch.stack(rows).permute(2, 3, 0, 1)

    @staticmethod
    def states(lstms: Sequence[RowLSTM], n: int, width: int, y: Tensor | None) -> RowStates:
        """What the layers of a net remember between the positions of ``n`` samples."""
        return RowStates(lstms, n, width, y)


def neighbours(states: Tensor, kernel: int) -> Tensor:
    """Each column's ``kernel`` neighbours side by side, zeros beyond the ends: [W, B, h] -> [W, B, kernel h]."""
    padded = F.pad(states, (0, 0, 0, 0, kernel // 2, kernel // 2))
    return torch.cat([padded[tap : tap + len(states)] for tap in range(kernel)], -1)


class RowStates:
    """Row LSTMs of L layers: the states' share of a row's gates is taken for the whole row when it begins."""

    def __init__(self, lstms: Sequence[RowLSTM], n: int, width: int, y: Tensor | None):
        self.inputs = Spatial([lstm.input_to_state for lstm in lstms], n, width)
        kernel, cells, order = lstms[0].kernel, lstms[0].cells, self.inputs.order
        matrix = torch.stack([lstm.state_to_state for lstm in lstms])[..., order]
        self.above = Rows(matrix.unflatten(1, (kernel, 1, -1)).permute(0, 4, 3, 2, 1), n, width)
        labelled = lstms[0].label is not None
        self.label = torch.stack([lstm.label(y) for lstm in lstms])[:, :, None, order] if labelled else 0.0
        self.hidden, self.cell = zero_states(matrix, len(lstms), n, width, len(cells))
        self.counts = [cells.count(group) for group in range(max(cells) + 1)]

    def begin_row(self, row: int) -> None:
        self.above.write(self.hidden)
        self.inputs.begin_row(self.above.add_to(self.label))

    def begin_pixel(self, column: int) -> None:
        self.inputs.begin_pixel(column)
        self.places = [
            list(zip(hidden.split(self.counts, 1), cell.split(self.counts, 1)))
            for hidden, cell in zip(self.hidden[:, :, column], self.cell[:, :, column])
        ]

    def end_pixel(self, column: int) -> None:
        self.inputs.end_pixel(column)

    def step(self, layer: int, group: int, x: Tensor, out: Tensor) -> None:
        """Write to ``out`` [n, cells of the group] what the layer gives for its features x [n, features of the group]."""
        conv = self.inputs.layers[layer]
        conv.inputs[group].copy_(x)
        hidden, cell = self.places[layer][group]
        out[:], cell[:] = lstm_cell(conv(group), cell)
        hidden[:] = out
