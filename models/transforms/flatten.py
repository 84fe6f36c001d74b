"""Images as vectors."""

from __future__ import annotations

from torch import Tensor

from models.contracts import Bijection


class Flatten(Bijection):
    """[B, *shape] -> [B, D] in raster order, channel after channel; log-det 0."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(x.shape[0])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.view(-1, *self.shape), z.new_zeros(z.shape[0])
