"""An autoregressive distribution: a causal net, whose outputs parameterise a likelihood head at every pixel of an order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log

import torch
from torch import Tensor
from tqdm import tqdm

from models.autoregressive.orders import Order
from models.contracts import CausalNet, DataSpec, GenerativeModel, Kind, Likelihood, Score, check_batch, sum_event
from models.likelihoods.nucleus import sample_nucleus


class Autoregressive(GenerativeModel):
    """log p(x | y) = sum_i log head(x_i | net(x_<i, y)) over pixels i in ``order``.

    A pixel's channels are coupled by the head, or by a net with ``groups`` > 1, which predicts them one after another.
    ``net`` is called with ``shape``, ``out_channels``, ``groups`` and ``classes`` (None unless ``conditional``) and returns a
    CausalNet. The net is given reals: levels {0..K-1} scaled to [-1, 1] (continuous data as it is).

    Where the order has several members, p(x) = 1/M sum_m p_m(x) over M = ``order.num`` of them, exactly; in training the
    score is that of a member drawn at random, whose expected probability is the p(x) of all members that can be drawn.

    Errors: ValueError when ``conditional`` and the data, or the batch, has no labels.
    """

    def __init__(self, spec: DataSpec, net: Callable[..., CausalNet], order: Order, likelihood: Likelihood, conditional: bool):
        super().__init__()
        if conditional and spec.classes is None:
            raise ValueError("conditional: true needs data with labels, and this data has none (classes: null)")
        self.spec = spec
        self.conditional = conditional
        self.order = order
        self.likelihood = likelihood
        self.net = net(
            shape=order.shape,
            out_channels=likelihood.param_channels(),
            groups=likelihood.groups,
            classes=spec.classes if conditional else None,
        )

    def score(self, x: Tensor, y: Tensor | None = None) -> Score:
        check_batch(x, self.spec)
        y, kind = self._labels(y), Kind.EXACT
        if self.training:
            nats = sum_event(self._map(x, y, self.order.draw())[0])
            kind = Kind.WEIGHT if self.order.resample or self.order.num > 1 else Kind.EXACT
        elif self.order.num == 1:
            nats = sum_event(self._map(x, y, 0)[0])
        else:
            members = torch.stack([sum_event(self._map(x, y, member)[0]) for member in range(self.order.num)])
            nats = members.logsumexp(0) - log(self.order.num)
        return Score(nats, kind, {"data": nats})

    def cost_map(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Nats that each pixel costs, -log p(x_i | x_<i, y): [B, H, W]. Raises ValueError where several orders are averaged."""
        check_batch(x, self.spec)
        nats, permutation = self._map(x, self._labels(y), self._the_member("a cost map"))
        return -self.order.restore(nats, permutation, self.spec.shape).sum(1)

    def _map(self, x: Tensor, y: Tensor | None, member: int) -> tuple[Tensor, Tensor | None]:
        """One member's log-probabilities as the net sees the image, and the member's permutation."""
        permutation = self.order.permutation(member)
        self.net.select(permutation, member)
        x = self.order.arrange(x, permutation, self.order.shape)
        return self.likelihood.log_prob_map(self.net(self.reals(x), y), x), permutation

    def sample(self, n: int, y: Tensor | None = None, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """``n`` draws; ``top_p`` below 1 draws every value from the fewest levels that hold so much of its mass.

        With several members each draw has its own, and members take turns.
        """
        dtype = self._dtype() if self.spec.levels is None else torch.uint8
        x = torch.zeros(n, *self.spec.shape, dtype=dtype, device=next(self.parameters()).device)
        if self.order.num == 1:
            return self._draw(x, self._labels(y), 0, 0, temperature, top_p)
        members = torch.randint(self.order.num, (n,))
        for member in members.unique().tolist():
            chosen = (members == member).to(x.device)
            labels = y if y is None else y[chosen]
            x[chosen] = self._draw(x[chosen], self._labels(labels), 0, member, temperature, top_p)
        return x

    def complete(
        self, x: Tensor, num_given: int, y: Tensor | None = None, temperature: float = 1.0, top_p: float = 1.0
    ) -> Tensor:
        """Keep the first ``num_given`` pixels of ``x`` [n, C, H, W] in the order and draw the others: like x.

        Raises ValueError where several orders are averaged: a prefix of one is not a prefix of another.
        """
        check_batch(x, self.spec)
        return self._draw(x, self._labels(y), num_given, self._the_member("completing"), temperature, top_p)

    @torch.no_grad()
    def _draw(self, x: Tensor, y: Tensor | None, num_given: int, member: int, temperature: float, top_p: float) -> Tensor:
        permutation = self.order.permutation(member)
        x = self.order.arrange(x, permutation, self.order.shape).clone()
        for token, params in self.walk(x, y, num_given, member):
            if top_p < 1:
                token.copy_(sample_nucleus(self.likelihood, params, token.shape[1], temperature, top_p))
            else:
                token.copy_(self.likelihood.sample(params, temperature))
        return self.order.restore(x, permutation, self.spec.shape)

    @torch.no_grad()
    def code_walk(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The walk of a coder, see ``models.coding.coder.Codable``: (values [n], log_pmf [n, K]), one channel of a pixel a part.

        The net is shown images in which every value is 0 until it was visited, whether ``x`` is known or not: a convolution
        by way of a transform mixes neighbours, and then zero weights do not keep the last bits free of what is not known.
        """
        member = self._the_member("a code")
        permutation = self.order.permutation(member)
        arranged = self.order.arrange(x, permutation, self.order.shape).contiguous()
        known = torch.zeros_like(arranged)
        walk = self.walk(known, self._labels(y), 0, member)
        for (token, params), values in zip(walk, self._tokens(arranged), strict=True):
            for channel in range(token.shape[1]):
                yield values[:, channel], self.likelihood.log_pmf(params, token, channel)[..., 0, 0]
                token[:, channel, 0, 0] = values[:, channel]
        x.copy_(self.order.restore(arranged, permutation, self.spec.shape))

    @torch.no_grad()
    def walk(self, x: Tensor, y: Tensor | None, num_given: int, member: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Visit the positions of arranged images ``x`` [n, C, H, W] in order, from pixel ``num_given`` on.

        Yields (the values there, a view [n, C / groups, 1, 1] into x; their head parameters [n, P / groups, 1, 1] given all
        before them). Whoever iterates writes the values into the view before going on. One cached step of the net a
        position, or one full pass where it has none: the same parameters. A bar shows walks of more than two seconds.
        """
        self.net.select(self.order.permutation(member), member)
        groups = self.net.groups
        cache, previous = self.net.start(len(x), y), None
        tokens = tqdm(self._tokens(x), desc="positions", leave=False, disable=None, delay=2)
        for position, token in enumerate(tokens):
            pixel, group = divmod(position, groups)
            if cache is not None:
                params = self.net.step(previous, position, cache)
            elif pixel >= num_given:
                params = self.net(self.reals(x), y).flatten(2)[:, :, pixel].chunk(groups, 1)[group]
            if pixel >= num_given:
                yield token[:, :, None, None], params[:, :, None, None]
            previous = self.reals(token)

    def _tokens(self, x: Tensor) -> list[Tensor]:
        """The values at the positions of arranged images, in order: views [n, C / groups] into ``x``."""
        tokens = x.flatten(2).unflatten(1, (self.net.groups, -1))
        return [tokens[:, group, :, pixel] for pixel in range(tokens.shape[3]) for group in range(self.net.groups)]

    def reals(self, x: Tensor) -> Tensor:
        """What the net is given."""
        x = x.to(self._dtype())
        return x if self.spec.levels is None else x * (2 / (self.spec.levels - 1)) - 1

    def _the_member(self, what: str) -> int:
        if self.order.num > 1:
            raise ValueError(f"{what} needs one order, and this model averages {self.order.num} of them")
        return 0

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _labels(self, y: Tensor | None) -> Tensor | None:
        if self.conditional and y is None:
            raise ValueError("this model is class-conditional (conditional: true): give it labels y")
        return y if self.conditional else None
