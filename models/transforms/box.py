"""From a box to all reals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.contracts import Bijection
from models.transforms.logit import Logit


class Box(Bijection):
    """z = logit(alpha + (1 - 2 alpha) (x - low) / (high - low)) in each channel of [B, C, ...], for x in [low, high].

    ``low`` and ``high`` are numbers, or one a channel. With a logistic base and nothing between, it is the uniform distribution
    on the box (but for ``alpha``, which keeps z finite at the sides: so much of the mass lies up to alpha beyond each).
    An x outside has no density: NaN. ValueError for an empty box.
    """

    term = "box"

    def __init__(self, channels: int, low: float | Sequence[float], high: float | Sequence[float], alpha: float):
        super().__init__()
        sides = [torch.as_tensor(side, dtype=torch.get_default_dtype()) for side in (low, high)]
        if any(side.dim() and len(side) != channels for side in sides) or not (sides[0] < sides[1]).all():
            raise ValueError(f"a box has a low below its high, numbers or {channels} each; got {low} and {high}")
        self.logit = Logit(alpha)
        self.register_buffer("low", sides[0].expand(channels).clone(), persistent=False)
        self.register_buffer("size", (sides[1] - sides[0]).expand(channels).clone(), persistent=False)

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low and size [C, 1, ...], and the log volume of the box []."""
        column = (-1, *(1 for _ in x.shape[2:]))
        return self.low.view(column), self.size.view(column), self.size.log().sum() * x[0, 0].numel()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, size, log_volume = self._sides(x)
        z, log_det = self.logit((x - low) / size)
        return z, log_det - log_volume

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, size, log_volume = self._sides(z)
        u, log_det = self.logit.inverse_and_log_det(z)
        return low + size * u, log_det + log_volume
