"""The masked autoencoder for distribution estimation (Germain et al. 2015, arXiv:1502.03509)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoregressive.tokens import from_tokens, to_tokens, token_sizes
from models.contracts import CausalNet
from models.seeding import generator


class MADE(CausalNet):
    """A perceptron whose weights are masked so that the parameters of token i see the tokens before i; inputs in [0, 1].

        h = act((W * M_W) x + c + u_y),   params = (V * M_V) h + (A * M_A) x + b

    A connection is kept into a hidden unit of degree m from places (of inputs: in the order; of units: their degree) <= m, and
    into the parameters of place d from places < d (eqs. 12, 13; the direct connection A: section 4.3). A token is a pixel, or
    with ``groups`` = C one channel of it. Weights belong to the data's pixels and follow them through every order; member m
    of the order draws its own degrees, uniform from the smallest degree of the layer before on. With ``hidden`` empty this is
    the fully visible sigmoid belief network (Frey 1998). Deviations: the label term u_y; PyTorch's initial weights.

    Errors: ValueError without any hidden layer or direct connection.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        groups: int,
        classes: int | None,
        hidden: Sequence[int],
        direct: bool,
        activation: Callable[[], nn.Module],
    ):
        super().__init__()
        if not hidden and not direct:
            raise ValueError("a MADE without hidden layers needs net.direct=true, or nothing connects input and output")
        self.shape, self.groups = shape, groups
        self.length, self.inputs, self.outputs = token_sizes(shape, out_channels, groups)
        widths = [self.length * self.inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.last = nn.Linear(widths[-1], self.length * self.outputs) if hidden else None
        self.direct = nn.Linear(widths[0], self.length * self.outputs, bias=not hidden) if direct else None
        self.label = nn.Embedding(classes, hidden[0] if hidden else self.length * self.outputs) if classes else None
        self.activation = activation()
        self._member = None
        self.select(None, 0)
        self._member = None  # the order has not chosen yet

    def select(self, permutation: Tensor | None, member: int) -> None:
        """Draw the masks of ``member``; they stay until another one is selected."""
        if member == self._member:
            return
        self._member = member
        with torch.device("cpu"):
            tokens = torch.arange(self.length)
            if permutation is not None:
                tokens = (permutation.cpu()[:, None] * self.groups + torch.arange(self.groups)).flatten()
            random, degrees, lowest = generator("connectivity", member), [tokens.argsort().repeat_interleave(self.inputs)], 0
            for layer in self.layers:
                highest = max(self.length - 1, lowest + 1)
                degrees.append(torch.randint(lowest, highest, (layer.out_features,), generator=random))
                lowest = int(degrees[-1].min())
            outputs = tokens.argsort().repeat_interleave(self.outputs)[:, None]
        self._keep("tokens", tokens)
        for k, (below, above) in enumerate(pairwise(degrees)):
            self._keep(f"degrees{k}", above)
            self._keep(f"mask{k}", below <= above[:, None])
        self._keep("last_mask", degrees[-1] < outputs)
        self._keep("direct_mask", degrees[0] < outputs)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.to(next(self.parameters()).device), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Inputs come and parameters leave in the order; the weights are in the data's own."""
        tokens = (to_tokens(x, self.groups) + 1) / 2
        inputs = torch.empty_like(tokens).index_copy(0, self.tokens, tokens).transpose(0, 1).flatten(1)
        h, params = inputs, 0.0 if self.label is None else self.label(y)
        for k, layer in enumerate(self.layers):
            h = F.linear(h, layer.weight * self.get_buffer(f"mask{k}"), layer.bias) + params
            h, params = self.activation(h), 0.0
        if self.last is not None:
            params = params + F.linear(h, self.last.weight * self.last_mask, self.last.bias)
        if self.direct is not None:
            params = params + F.linear(inputs, self.direct.weight * self.direct_mask, self.direct.bias)
        return from_tokens(params.unflatten(1, (self.length, -1)).transpose(0, 1)[self.tokens], self.groups, self.shape)

    @torch.no_grad()
    def start(self, n: int, y: Tensor | None = None) -> Cache:
        return Cache(self, n, y)


class Cache:
    """Hidden units sorted by degree: a token settles those of its own place, in every layer, and no weight is read twice.

    What a unit or output sees is then a prefix of the layer before, so that no mask is needed.
    """

    def __init__(self, net: MADE, n: int, y: Tensor | None):
        self.inputs, self.activation = net.inputs, net.activation
        spread = lambda count: (net.tokens[:, None] * count + torch.arange(count).to(net.tokens)).flatten()  # noqa: E731
        columns, label = spread(net.inputs), 0.0 if net.label is None else net.label(y)
        parameter = next(net.parameters())
        self.values = [parameter.new_zeros(n, len(columns))]
        self.settled = [[place * net.inputs for place in range(net.length + 1)]]
        """Of each layer, how many units see nothing but the places before each one."""
        self.layers, units = [], columns
        for k, layer in enumerate(net.layers):
            degrees, rows = net.get_buffer(f"degrees{k}").sort(stable=True)
            self.layers.append((layer.weight[rows][:, units], (layer.bias + label).expand(n, -1)[:, rows]))
            self.values.append(parameter.new_zeros(n, len(rows)))
            self.settled.append(torch.searchsorted(degrees, torch.arange(net.length + 1).to(degrees)).tolist())
            units, label = rows, 0.0
        rows = spread(net.outputs)
        self.outputs, bias = [], label
        for layer, k in ((net.last, -1), (net.direct, 0)):
            if layer is not None:
                weight = layer.weight[rows][:, units if k else columns].unflatten(0, (net.length, -1))
                self.outputs.append((weight, self.values[k], self.settled[k]))
                bias = bias + (0.0 if layer.bias is None else layer.bias)
        self.bias = bias.expand(n, -1)[:, rows].unflatten(1, (net.length, -1))

    def step(self, x_prev: Tensor | None, position: int) -> Tensor:
        """Parameters [n, Q] at ``position``; positions come in order."""
        if position:
            self.values[0][:, self.settled[0][position - 1] : self.settled[0][position]] = (x_prev + 1) / 2
            for k, (weight, bias) in enumerate(self.layers):
                seen, first, end = self.settled[k][position], self.settled[k + 1][position - 1], self.settled[k + 1][position]
                if end > first:
                    h = torch.addmm(bias[:, first:end], self.values[k][:, :seen], weight[first:end, :seen].T)
                    self.values[k + 1][:, first:end] = self.activation(h)
        params = self.bias[:, position]
        for weight, values, settled in self.outputs:
            params = torch.addmm(params, values[:, : settled[position]], weight[position, :, : settled[position]].T)
        return params
