"""From a box to all reals."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Bijection
from models.transforms.logit import Logit


class Box(Bijection):
    """z = logit(alpha + (1 - 2 alpha) u) in each channel of [B, C, ...], u in [0, 1] the place of x between the sides of a box.

    The sides are 0 and ``bound`` for the first ``num`` channels (None: for all), as Absolute leaves them, and -bound and bound
    for the others. With a logistic base and nothing between, it is the uniform distribution on the box, but for ``alpha``, which
    keeps z finite at the sides: so much of the mass lies up to a share alpha beyond each. An x outside has density 0, the
    contribution -inf. ValueError for an empty box.
    """

    term = "box"

    def __init__(self, channels: int, num: int | None, bound: float, alpha: float):
        super().__init__()
        if bound <= 0:
            raise ValueError(f"bound must be positive; got {bound}")
        self.logit = Logit(alpha)
        low = torch.full((channels,), -float(bound))
        low[:num] = 0.0
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("size", bound - low, persistent=False)

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low and size [C, 1, ...], and the log volume of the box []."""
        column = (-1, *(1 for _ in x.shape[2:]))
        return self.low.view(column), self.size.view(column), self.size.log().sum() * x[0, 0].numel()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, size, log_volume = self._sides(x)
        u = (x - low) / size
        z, log_det = self.logit(u.clamp(0, 1))
        inside = ((u >= 0) & (u <= 1)).flatten(1).all(1)
        return z, torch.where(inside, log_det - log_volume, -torch.inf)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, size, log_volume = self._sides(z)
        u, log_det = self.logit.inverse_and_log_det(z)
        return low + size * u, log_det + log_volume
