"""Moving dequantized data to the range a flow likes."""

from __future__ import annotations

from math import log

from torch import Tensor

from models.contracts import Bijection


class Rescale(Bijection):
    """z = scale x + shift, log-det D log scale: [0, 1] to [-1/2, 1/2] (Glow) is scale 1, shift -0.5."""

    term = "rescale"

    def __init__(self, scale: float, shift: float):
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale must be positive; got {scale}")
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.scale * x + self.shift, x.new_full((x.shape[0],), x[0].numel() * log(self.scale))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (z - self.shift) / self.scale, z.new_full((z.shape[0],), -z[0].numel() * log(self.scale))
