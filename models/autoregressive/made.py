"""The masked autoencoder for distribution estimation (Germain et al. 2015, arXiv:1502.03509)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoregressive.tokens import from_tokens, to_tokens, token_sizes
from models.contracts import CausalNet
from models.nn.masked import MaskedPerceptron, Walk
from models.seeding import generator


class MADE(CausalNet):
    """A perceptron whose weights are masked so that the parameters of token i see the tokens before i; inputs in [0, 1].

    A token is a pixel, or with ``groups`` = C one channel of it. Weights belong to the data's pixels and follow them through
    every order; member m of the order draws its own degrees, uniform from the smallest degree of the layer before on. With
    ``hidden`` empty this is the fully visible sigmoid belief network (Frey 1998). ``direct`` connects inputs and outputs.
    Deviations: labels enter the first layer; PyTorch's initial weights.

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
        self.shape, self.groups, self.classes = shape, groups, classes
        self.length, self.inputs, self.outputs = token_sizes(shape, out_channels, groups)
        sizes = self.length * self.inputs, hidden, self.length * self.outputs
        self.net = MaskedPerceptron(*sizes, direct, classes or 0, activation)
        self.select(None, 0)
        self._member = None  # the order has not chosen yet

    _member: int | None = None

    def select(self, permutation: Tensor | None, member: int) -> None:
        """Draw the masks of ``member``; they stay until another one is selected."""
        if member == self._member:
            return
        self._member = member
        with torch.device("cpu"):
            tokens = torch.arange(self.length)
            if permutation is not None:
                tokens = (permutation.cpu()[:, None] * self.groups + torch.arange(self.groups)).flatten()
            places, lowest = tokens.argsort(), self.net.lowest_degree(self.length)
            random, degrees = generator("connectivity", member), []
            for layer in self.net.hidden:
                highest = max(self.length - 1, lowest + 1)
                degrees.append(torch.randint(lowest, highest, (layer.out_features,), generator=random))
                lowest = int(degrees[-1].min())
        self.net.connect(places.repeat_interleave(self.inputs), degrees, places.repeat_interleave(self.outputs))
        self.register_buffer("tokens", tokens.to(next(self.parameters()).device), persistent=False)

    def _context(self, y: Tensor | None) -> Tensor | None:
        return None if self.classes is None else F.one_hot(y, self.classes).to(next(self.parameters()))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Inputs come and parameters leave in the order; the weights are in the data's own."""
        tokens = (to_tokens(x, self.groups) + 1) / 2
        inputs = torch.empty_like(tokens).index_copy(0, self.tokens, tokens).transpose(0, 1).flatten(1)
        params = self.net(inputs, self._context(y)).unflatten(1, (self.length, -1))
        return from_tokens(params.transpose(0, 1)[self.tokens], self.groups, self.shape)

    @torch.no_grad()
    def start(self, n: int, y: Tensor | None = None) -> Walk:
        return Walk(self.net, n, self._context(y))

    @torch.no_grad()
    def step(self, x_prev: Tensor | None, position: int, cache: Walk) -> Tensor:
        return cache.step(position, None if x_prev is None else (x_prev + 1) / 2)
