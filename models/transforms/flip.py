"""Reversal of the order of a vector's elements."""

from torch import Tensor

from models.contracts import Bijection


class Flip(Bijection):
    """z = (x_D, ..., x_1), log |det| = 0: between autoregressive steps, so that every element gets to depend on every other."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flip(1), x.new_zeros(x.shape[0])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.forward(z)
