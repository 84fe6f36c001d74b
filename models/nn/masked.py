"""Masked perceptrons whose output d depends only on the inputs before d in a given order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a fixed ``mask`` [outputs, inputs] of zeros and ones."""

    def __init__(self, mask: Tensor):
        outputs, inputs = mask.shape
        super().__init__(inputs, outputs)
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """A masked autoencoder: inputs [B, D] and a context [B, E] to ``outputs`` numbers a dimension, [B, outputs, D].

    With degrees m, a connection is kept into a hidden unit from m <= its own and into output d from m < d
    (Germain et al. 2015, arXiv:1502.03509, eqs. 12 and 13). ``order`` [D] gives each input's place 0..D-1; hidden
    degrees cycle through the useful values, for a context (which every hidden unit of the first layer sees) -1 included,
    so that the first dimension of the order depends on the context too. Deviation: degrees are not drawn at random.
    """

    def __init__(
        self,
        order: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        context_dim: int,
        activation: Callable[[], nn.Module],
    ):
        super().__init__()
        dim = len(order)
        if sorted(order) != list(range(dim)):
            raise ValueError(f"an order is a permutation of 0..{dim - 1}; got {list(order)}")
        if not hidden:
            raise ValueError("a MADE needs at least one hidden layer")
        self.outputs = outputs
        self.register_buffer("order", torch.as_tensor(order), persistent=False)
        lowest = -1 if context_dim or dim == 1 else 0
        degrees = [self.order, *(torch.arange(width) % (dim - 1 - lowest) + lowest for width in hidden)]
        for k, degree in enumerate(degrees[1:]):
            self.register_buffer(f"degrees{k}", degree, persistent=False)
        self.hidden = nn.ModuleList(MaskedLinear(a <= b[:, None]) for a, b in zip(degrees, degrees[1:]))
        self.last = MaskedLinear(degrees[-1] < self.order.repeat(outputs)[:, None])
        self.context = nn.Linear(context_dim, hidden[0], bias=False) if context_dim else None
        self.activation = activation()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.hidden[0](x)
        if self.context is not None:
            h = h + self.context(context)
        for layer in self.hidden[1:]:
            h = layer(self.activation(h))
        return self.last(self.activation(h)).unflatten(1, (self.outputs, -1))


class Walk:
    """The outputs of a MADE place after place of its order, for all places together at the cost of about one pass.

    Hidden units are sorted by degree: an input settles those of its own place, in every layer. What a unit or an output
    sees is then a prefix of the layer before, so that no mask is needed and no weight is used twice. Keeps gradients.
    """

    def __init__(self, net: MADE, n: int, context: Tensor | None = None):
        self.activation, dim = net.activation, len(net.order)
        units, label = net.order.argsort(), 0.0 if net.context is None else net.context(context).T
        self.known = [net.last.weight.new_zeros(0, n) for _ in range(len(net.hidden) + 1)]
        """Of the inputs and of each hidden layer, the values [units, n] so far."""
        self.layers = []
        """Of each hidden layer and degree -1..D-2, the weights [units, inputs] and biases [units, n|1] of its units."""
        for k, layer in enumerate(net.hidden):
            degrees = net.get_buffer(f"degrees{k}")
            counts, rows = torch.bincount(degrees + 1, minlength=dim).tolist(), degrees.argsort(stable=True)
            weight, bias = layer.weight[rows][:, units], (layer.bias[:, None] + label)[rows]
            self.layers.append(list(zip(weight.split(counts), bias.split(counts), strict=True)))
            units, label = rows, 0.0
        weight, bias = net.last.weight.unflatten(0, (-1, dim)), net.last.bias.unflatten(0, (-1, dim))
        order = net.order.argsort()
        self.last = list(zip(weight[:, order][:, :, units].unbind(1), bias[:, order].unbind(1), strict=True))

    def step(self, place: int, value: Tensor | None) -> Tensor:
        """Outputs [n, outputs] at ``place``, given the input [n, 1] at the place before (None at 0). Places come in order."""
        if value is not None:
            self._settle(0, value.T)
        for k, layer in enumerate(self.layers):
            weight, bias = layer[place]
            if len(weight):
                below = self.known[k]
                self._settle(k + 1, self.activation(torch.addmm(bias, weight[:, : len(below)], below)))
        weight, bias = self.last[place]
        below = self.known[-1]
        return torch.addmm(bias[:, None], weight[:, : len(below)], below).T

    def _settle(self, layer: int, values: Tensor) -> None:
        self.known[layer] = torch.cat([self.known[layer], values])
