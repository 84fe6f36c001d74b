"""Masked perceptrons: numbers have places in an order, and outputs depend on the inputs of earlier places only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a ``mask`` [outputs, inputs] of zeros and ones, at first all ones."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        self.allow(torch.ones(outputs, inputs))

    def allow(self, mask: Tensor) -> None:
        self.register_buffer("mask", mask.to(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _MaskedProduct.apply(x, self.weight, self.mask, self.bias)


class _MaskedProduct(torch.autograd.Function):
    """``F.linear(x, weight * mask, bias)``, which multiplies again for its gradients instead of keeping the product."""

    @staticmethod
    def forward(ctx, x, weight, mask, bias):
        ctx.save_for_backward(x, weight, mask)
        return F.linear(x, weight * mask, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mask = ctx.saved_tensors
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = (gradient @ (weight * mask).to(gradient.dtype)).to(x.dtype)
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[1]:
            by_weight = (rows.T @ x.reshape(-1, x.shape[-1]).to(gradient.dtype)).to(weight.dtype).mul_(mask)
        if ctx.needs_input_grad[3]:
            by_bias = rows.sum(0).to(weight.dtype)
        return by_x, by_weight, None, by_bias


class MaskedPerceptron(nn.Module):
    """[B, inputs] and a context [B, E] to [B, outputs], masked by ``connect`` (Germain et al. 2015, arXiv:1502.03509).

        h = act((W * M_W) x + c + U context),   outputs = (V * M_V) h + (A * M_A) x + b

    A connection is kept into a hidden unit of degree m from places <= m (of inputs: in the order; of hidden units: their
    degree), and into an output of place d from places < d (eqs. 12, 13; the ``direct`` connection A: section 4.3). Units of
    degree -1 see the context alone, which otherwise enters the first layer, or the outputs if there are no ``hidden`` ones.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        direct: bool,
        context_dim: int,
        activation: Callable[[], nn.Module],
    ):
        super().__init__()
        self.hidden = nn.ModuleList(MaskedLinear(*sizes) for sizes in pairwise([inputs, *hidden]))
        self.last = MaskedLinear(hidden[-1], outputs) if hidden else None
        self.direct = MaskedLinear(inputs, outputs, bias=not hidden) if direct else None
        self.context = nn.Linear(context_dim, [*hidden, outputs][0], bias=False) if context_dim else None
        self.activation = activation()

    def lowest_degree(self, length: int) -> int:
        """The smallest degree of use in an order of ``length`` places: units of the largest, ``length`` - 2, serve the last one."""
        return -1 if self.context is not None or length == 1 else 0

    def connect(self, inputs: Tensor, degrees: Sequence[Tensor], outputs: Tensor) -> None:
        """Mask all layers, given the places of inputs and outputs, from 0 on, and the degrees of each hidden layer's units."""
        self._keep("input_places", inputs)
        self._keep("output_places", outputs)
        for k, (layer, (below, above)) in enumerate(zip(self.hidden, pairwise([inputs, *degrees]), strict=True)):
            layer.allow(below <= above[:, None])
            self._keep(f"degrees{k}", above)
        if self.last is not None:
            self.last.allow(degrees[-1] < outputs[:, None])
        if self.direct is not None:
            self.direct.allow(inputs < outputs[:, None])

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.to(next(self.parameters()).device), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        shifts = [] if self.context is None else [self.context(context)]
        h = x
        for layer in self.hidden:
            h = self.activation(layer(h) + shifts.pop() if shifts else layer(h))
        parts = [*shifts, *(layer(below) for layer, below in ((self.last, h), (self.direct, x)) if layer is not None)]
        return sum(parts[1:], start=parts[0])


class MADE(MaskedPerceptron):
    """The masked autoencoder over vectors: inputs [B, D] and a context [B, E] to ``outputs`` numbers a dimension, [B, outputs, D].

    ``order`` [D] gives each input's place 0..D-1. Deviation from Germain et al. 2015: degrees are not drawn at random but
    cycle through the useful values.
    """

    def __init__(
        self,
        order: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        context_dim: int,
        activation: Callable[[], nn.Module],
    ):
        dim = len(order)
        if sorted(order) != list(range(dim)):
            raise ValueError(f"an order is a permutation of 0..{dim - 1}; got {list(order)}")
        if not hidden:
            raise ValueError("a MADE needs at least one hidden layer")
        super().__init__(dim, hidden, outputs * dim, False, context_dim, activation)
        self.outputs = outputs
        places, lowest = torch.as_tensor(order), self.lowest_degree(dim)
        self.connect(places, [torch.arange(width) % (dim - 1 - lowest) + lowest for width in hidden], places.repeat(outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x, context).unflatten(1, (self.outputs, -1))


class Walk:
    """The outputs of a masked perceptron place after place, for all places together at the cost of about one pass.

    Hidden units are sorted by degree: an input settles those of its own place, in every layer. What a unit or an output
    sees is then a prefix of the layer before, so that no mask is needed and no weight is used twice. Keeps gradients.
    """

    def __init__(self, net: MaskedPerceptron, n: int, context: Tensor | None = None):
        self.activation = net.activation
        rows = net.output_places.argsort(stable=True)
        length = int(net.output_places[rows[-1]]) + 1
        shift = 0.0 if net.context is None else net.context(context).T
        self.known = [next(net.parameters()).new_zeros(0, n) for _ in range(len(net.hidden) + 1)]
        """Of the inputs and of each hidden layer, the values [units, n] so far."""
        self.layers = []
        """Of each hidden layer and degree -1..L-2, the weights [units, inputs] and biases [units, n|1] of its units."""
        columns = units = net.input_places.argsort(stable=True)
        for k, layer in enumerate(net.hidden):
            degrees = net.get_buffer(f"degrees{k}")
            counts, sorted_units = torch.bincount(degrees + 1, minlength=length).tolist(), degrees.argsort(stable=True)
            weight, bias = layer.weight[sorted_units][:, units], (layer.bias[:, None] + shift)[sorted_units]
            self.layers.append(list(zip(weight.split(counts), bias.split(counts), strict=True)))
            units, shift = sorted_units, 0.0
        self.ends, bias = [], shift
        """Of each layer that outputs see, its number and the weights [outputs, units] of every place."""
        for layer, below, seen in ((net.last, -1, units), (net.direct, 0, columns)):
            if layer is not None:
                self.ends.append((below, layer.weight[rows][:, seen].unflatten(0, (length, -1)).unbind()))
                bias = bias if layer.bias is None else bias + layer.bias[:, None]
        self.bias = bias[rows].unflatten(0, (length, -1)).unbind()

    def step(self, place: int, value: Tensor | None) -> Tensor:
        """Outputs [n, Q] at ``place``, given the inputs [n, U] at the place before (None at 0). Places come in order."""
        if value is not None:
            self._settle(0, value.T)
        for k, layer in enumerate(self.layers):
            weight, bias = layer[place]
            if len(weight):
                below = self.known[k]
                self._settle(k + 1, self.activation(torch.addmm(bias, weight[:, : len(below)], below)))
        outputs = self.bias[place]
        for k, weights in self.ends:
            below = self.known[k]
            outputs = torch.addmm(outputs, weights[place][:, : len(below)], below)
        return outputs.T

    def _settle(self, layer: int, values: Tensor) -> None:
        self.known[layer] = torch.cat([self.known[layer], values])
