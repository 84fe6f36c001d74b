"""Bijections one after another, as one bijection."""

from __future__ import annotations

from torch import Tensor, nn

from models.contracts import Bijection


class Sequential(Bijection):
    """z = (T_k o ... o T_1)(x); the contributions add up. Raises TypeError for a part that is not a Bijection."""

    def __init__(self, parts: list[Bijection]):
        super().__init__()
        for part in parts:
            if not isinstance(part, Bijection):
                raise TypeError(f"Sequential chains bijections; {type(part).__name__} is none (a Flow takes any Transform)")
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for part in self.parts:
            x, contribution = part(x, context)
            total = total + contribution
        return x, total

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[0])
        for part in reversed(self.parts):
            z, log_det = part.inverse_and_log_det(z, context)
            total = total + log_det
        return z, total
