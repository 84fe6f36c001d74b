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
