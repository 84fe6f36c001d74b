"""The recurrence that convolutional LSTMs share, once their gates are known."""

import torch
from torch import Tensor


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """(o tanh(c), c) with c = f cell + i g: ``gates`` [..., 4 h] of the kinds o, f, i, g before squashing, ``cell`` [..., h].

    o, f and i are sigmoids, g is a tanh. The cell, a long sum, may have a wider type than the gates.
    Source: van den Oord et al. 2016, arXiv:1601.06759, eq. 3.
    """
    num_hidden = cell.shape[-1]
    sigmoids, content = gates.split([3 * num_hidden, num_hidden], -1)
    output, forget, write = sigmoids.sigmoid().chunk(3, -1)
    cell = torch.addcmul(forget * cell, write, content.tanh())
    return output * cell.tanh().to(output.dtype), cell


def zero_states(gates: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """(hidden, cell) of zeros on the gates' device: the hidden state of their type, the cell at least of float32."""
    return gates.new_zeros(shape), gates.new_zeros(shape, dtype=torch.promote_types(gates.dtype, torch.float32))
