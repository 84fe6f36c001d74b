"""Transforms of integers: images on a grid of reals, and couplings that stay on it.

The grid has a step of 2^-m, the largest that puts K levels into one unit, so that nets and priors see numbers of the usual size.
Powers of two make it exact: z / step is an integer, float32 holds all of them up to 2^24, and their sums and differences have
no rounding error. So integers come back exactly, in any float type but half precision, whatever the weights.
"""

from __future__ import annotations

from math import ceil, log2

import torch
from torch import Tensor

from models.contracts import Kind
from models.distributions.normal import full_precision
from models.transforms.dequantize import Dequantization
from models.transforms.maps import ScalarMap
from models.transforms.partitions import Partition

MAX_SHIFT = 2**14
"""No translation is longer (in steps): sums of 1,000 of them stay below 2^24. No trained net comes near."""


def grid_step(levels: int) -> float:
    """The largest power of two with which ``levels`` steps are at most 1: 1/256 for 256 levels, 1/32 for 17."""
    return 2.0 ** -ceil(log2(levels))


class Grid(Dequantization):
    """z = (x - K // 2) step, for integers x [B, ...]: about [-1/2, 1/2), contribution 0, for every integer x is one z.

    ``inverse`` clamps to {0..K-1}, as uint8; ``integers`` does not.
    """

    kind = Kind.EXACT
    term = "grid"
    unit_interval = False

    def __init__(self, levels: int):
        super().__init__()
        self.levels = levels
        # the step, and what carries the module's device and dtype
        self.register_buffer("step", torch.tensor(grid_step(levels)), persistent=False)

    def midpoint(self, x: Tensor) -> Tensor:
        """z itself: integers have no width."""
        return (x.to(self.step.dtype) - self.levels // 2) * self.step

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.midpoint(x), self.step.new_zeros(len(x))

    def on_data(self, z: Tensor) -> Tensor:
        x = self.integers(z).flatten(1)
        return ((x >= 0) & (x < self.levels)).all(1)

    def integers(self, z: Tensor) -> Tensor:
        """x in int64, also where it is no level."""
        return (z / self.step).long() + self.levels // 2

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.integers(z).clamp(0, self.levels - 1).to(torch.uint8)


class IntegerShift(ScalarMap):
    """z = x + step round(shift / step): a translation on the grid of ``levels``, a bijection of integers.

    The gradient passes the rounding as if it were not there (straight through). Hoogeboom et al. 2019, arXiv:1905.07376.
    Deviation: a translation is at most 2^14 steps long, which keeps float32 exact.
    """

    num_params = 1

    def __init__(self, levels: int):
        super().__init__()
        self.step = grid_step(levels)
        self.bound = MAX_SHIFT * self.step

    def _translation(self, params: Tensor) -> Tensor:
        shift = full_precision(params).clamp(-self.bound, self.bound)
        return (shift.detach() / self.step).round() * self.step + (shift - shift.detach())  # what is added is exactly 0

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x + self._translation(params), x.new_zeros(()).expand_as(x)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return z - self._translation(params), z.new_zeros(()).expand_as(z)


class LastQuarter(Partition):
    """The last quarter of the channels, rounded down, moves (the released code's split_quarter)."""

    def __init__(self, channels: int):
        if channels < 4:
            raise ValueError("a coupling that moves a quarter of the channels needs at least four: squeeze first")
        self.moved_channels = channels // 4
        self.seen_channels = channels - self.moved_channels

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.split([self.seen_channels, self.moved_channels], 1)

    def join(self, seen: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([seen, moved], 1)
