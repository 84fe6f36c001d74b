"""Sorting: a model of what has no order, or of values apart from their order."""

from __future__ import annotations

from collections.abc import Callable
from math import lgamma

import torch
from torch import Tensor, nn

from models.contracts import Bijection
from models.distributions.normal import full_precision
from models.transforms.surjection import Surjection


def _check(channels: int, size: int) -> None:
    if size < 2 or channels % size:
        raise ValueError(f"vectors of length {channels} are not made of groups of {size}: set size to a divisor, at least 2")


class Sort(Surjection):
    """Each ``size`` successive numbers of a vector [B, D] in ascending order, contribution sum log p(their order before | z).

    Nielsen et al. 2020 (arXiv:2007.02731), table 3. Any order is as likely, 1 / size!, or, with scores s = ``scores(D, D)`` of z,
    places are drawn one after another without replacement with probabilities as exp(s): whose value is the smallest, and so on
    (Plackett 1975, Luce 1959). The residual is the rank of each value in its group. What comes after must be a density over
    sorted values, as Ordered makes it. ValueError where D is no multiple of ``size``.
    """

    term = "order"

    def __init__(self, channels: int, size: int, scores: Callable[[int, int], nn.Module] | None):
        super().__init__()
        _check(channels, size)
        self.kept, self.size = channels, size
        self.scores = None if scores is None else scores(channels, channels)
        self.reparameterised = scores is None

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        values, places = x.unflatten(1, (-1, self.size)).sort(2)
        z = values.flatten(1)
        if self.scores is None:
            return z, z.new_full((len(z),), -lgamma(self.size + 1) * values.shape[1])
        chosen = self._scores(z).gather(2, places)
        left = chosen.flip(2).logcumsumexp(2).flip(2)  # over those that were not yet chosen
        return z, (chosen - left).sum((1, 2))

    def _scores(self, z: Tensor) -> Tensor:
        return full_precision(self.scores(z)).unflatten(1, (-1, self.size))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, places = x.unflatten(1, (-1, self.size)).sort(2)
        return values.flatten(1), places.argsort(2).to(x.dtype).flatten(1)

    def decode(self, z: Tensor, residual: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        values = z.unflatten(1, (-1, self.size))
        if residual is None:
            late = torch.empty_like(values).exponential_().log()  # the smallest of Gumbels, turned round, is chosen first
            late = late if self.scores is None else late - self._scores(z)
        else:
            late = residual.unflatten(1, (-1, self.size))
        return values.gather(2, late.argsort(2).argsort(2)).flatten(1)


class Ordered(Bijection):
    """Sorted groups of ``size`` numbers of a vector [B, D] to all reals: the first one, then log(x_i - x_i-1 + alpha).

    The log-det is minus the sum of these logarithms. ``alpha`` keeps them finite where two values are equal; in return, the mass
    below log(alpha) is that of gaps between -alpha and 0. ValueError where D is no multiple of ``size``.
    """

    term = "ordered"

    def __init__(self, channels: int, size: int, alpha: float):
        super().__init__()
        _check(channels, size)
        if alpha <= 0:
            raise ValueError(f"alpha must be positive; got {alpha}")
        self.size, self.alpha = size, alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        groups = x.unflatten(1, (-1, self.size))
        gaps = (groups.diff(dim=2) + self.alpha).log()
        return torch.cat([groups[..., :1], gaps], 2).flatten(1), -gaps.sum((1, 2))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        groups = z.unflatten(1, (-1, self.size))
        gaps = groups[..., 1:]
        return torch.cat([groups[..., :1], gaps.exp() - self.alpha], 2).cumsum(2).flatten(1), gaps.sum((1, 2))
