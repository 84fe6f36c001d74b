"""The neural autoregressive distribution estimator (Larochelle & Murray 2011; Uria et al. 2016, arXiv:1605.02226)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.autoregressive.tokens import from_tokens, to_tokens, token_sizes
from models.contracts import CausalNet


class Scan(torch.autograd.Function):
    """params_i = sigmoid(a_i) V_i^T,  a_0 = a,  a_{i+1} = a_i + x_i W_i: every hidden state made from the one before.

    ``x`` [L, B, U], ``a`` [B, H], ``W`` [L, U, H], ``V`` [L, Q, H] to [L, B, Q]; O(B L H (U + Q)) in time, and L B H numbers
    are kept for the way back, which runs the recurrence in reverse.
    """

    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, w: Tensor, v: Tensor) -> Tensor:
        a = a.clone()
        hidden = a.new_empty(len(x), *a.shape)
        for i in range(len(x)):
            torch.sigmoid(a, out=hidden[i])
            a.addmm_(x[i], w[i])
        ctx.save_for_backward(x, hidden, w, v)
        return torch.bmm(hidden, v.mT)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, hidden, w, v = ctx.saved_tensors
        later = torch.zeros_like(hidden[0])  # the gradient of a_{i+1}
        grad_v = torch.bmm(grad.mT, hidden)
        grad_x, grad_w, slope = torch.empty_like(x), torch.empty_like(w), torch.empty_like(later)
        for i in reversed(range(len(x))):
            torch.mm(x[i].T, later, out=grad_w[i])
            torch.mm(later, w[i].T, out=grad_x[i])
            torch.mm(grad[i], v[i], out=slope)
            later += torch.ops.aten.sigmoid_backward(slope, hidden[i])
        return grad_x, later, grad_w, grad_v


class NADE(CausalNet):
    """params_i = b_i + V_i sigmoid(c + sum_{j<i} W_j x_j + u_y) for tokens i in order, inputs scaled to [0, 1].

    A token is a pixel, or with ``groups`` = C one channel of it. The weights belong to the data's pixels and follow them
    through every order (Uria et al. 2016, section 4). Source: eqs. 3 and 4; heads other than Bernoulli are as in section 6.
    Deviation: the label term u_y is ours.
    """

    def __init__(self, shape: tuple[int, int, int], out_channels: int, groups: int, classes: int | None, hidden: int):
        super().__init__()
        self.shape, self.groups = shape, groups
        length, inputs, outputs = token_sizes(shape, out_channels, groups)
        self.w = nn.Parameter(torch.randn(length, inputs, hidden) * 0.01)
        self.c = nn.Parameter(torch.zeros(hidden))
        self.v = nn.Parameter(torch.randn(length, outputs, hidden) * 0.01)
        self.b = nn.Parameter(torch.zeros(length, outputs))
        self.label = nn.Embedding(classes, hidden) if classes else None
        self._tokens = None

    def select(self, permutation: Tensor | None, member: int) -> None:
        self._tokens = None
        if permutation is not None:
            within = torch.arange(self.groups)
            self._tokens = (permutation.cpu()[:, None] * self.groups + within).flatten().to(self.w.device)

    def _followed(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, V and b in the order of the net's positions."""
        return tuple(t if self._tokens is None else t[self._tokens] for t in (self.w, self.v, self.b))

    def _first(self, n: int, y: Tensor | None) -> Tensor:
        return self.c.expand(n, -1) if self.label is None else self.c + self.label(y)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        w, v, b = self._followed()
        params = Scan.apply((to_tokens(x, self.groups) + 1) / 2, self._first(len(x), y), w, v) + b[:, None]
        return from_tokens(params, self.groups, self.shape)

    @torch.no_grad()
    def start(self, n: int, y: Tensor | None = None) -> tuple[Tensor, ...]:
        """The running sum, and the weights in order."""
        return self._first(n, y).clone(), *(t.detach() for t in self._followed())

    @torch.no_grad()
    def step(self, x_prev: Tensor | None, position: int, cache: tuple[Tensor, ...]) -> Tensor:
        a, w, v, b = cache
        if position:
            a.addmm_((x_prev + 1) / 2, w[position - 1])
        return torch.addmm(b[position], a.sigmoid(), v[position].T)
