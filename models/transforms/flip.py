"""Reversal of the order of a vector's elements."""

from torch import Tensor

from models.contracts import Bijection


class Flip(Bijection):
    """z = (x_D, ..., x_1), log |det| = 0: between autoregressive steps, so that every element gets to depend on every other.

    Any ``dim`` serves; it can be given so that a flip is made as other steps are.
    """

    def __init__(self, dim: int | None = None):
        super().__init__()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flip(1), x.new_zeros(x.shape[0])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.forward(z)
