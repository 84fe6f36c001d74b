"""A learned prior p(z): a standard normal moved by bijections."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.contracts import Bijection
from models.distributions.bases import StandardNormal
from models.distributions.flow import FlowConditional
from models.transforms.flip import Flip


class FlowPrior(FlowConditional):
    """log p(z) = log N(z_0; 0, I) + sum_t log |det dz_{t-1} / dz_t|, the dimensions reversed between steps.

    ``transform`` builds a bijection from (dim, context_dim = 0) whose cheap direction is forward (z -> base): training
    needs log p(z) of the posterior's draws, only sampling the inverse.
    """

    def __init__(self, shape: Sequence[int], num_steps: int, transform: Callable[[int, int], Bijection]):
        (dim,) = shape
        steps = [t for _ in range(num_steps) for t in (Flip(), transform(dim, 0))][1:]
        super().__init__(StandardNormal(shape), steps)
