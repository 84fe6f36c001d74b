"""From integers to reals and back, paying for the change."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from models.contracts import Kind, Transform


class Dequantization(Transform):
    """Integers x [B, C, H, W] to reals z ~ q(z | x): P(x) = E_q[p(z) / q(z | x)], with q positive where ``inverse(z)`` is x.

    The contribution is -log q(z | x), and exp(nats) a weight. ``x`` is any integer dtype; ``z`` has the dtype of the module.
    """

    kind = Kind.WEIGHT
    term = "dequantize"
    unit_interval: bool
    """Whether z lies in [0, 1], from where a flow's preprocessing moves it; otherwise it is on the whole line already."""

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """What z has for images of ``shape``."""
        return shape

    def midpoint(self, x: Tensor) -> Tensor:
        """A z amid those of x, which no small error turns into another integer's."""
        raise NotImplementedError

    def on_data(self, z: Tensor) -> Tensor:
        """Whether each z is that of some integers: [B] of bool. What p has elsewhere is lost to the P(x)."""
        raise NotImplementedError


class UniformDequantization(Dequantization):
    """z = (x + u) / K in [0, 1], u ~ U[0, 1)^D: P(x) = E_u[p(z)] K^-D, and the contribution is -D log K.

    Uria et al. 2013 (arXiv:1306.0186), sec. 3; Theis et al. 2015 (arXiv:1511.01844), sec. 3.1. ``inverse`` is floor, clamped
    to {0..K-1}, as uint8.
    """

    unit_interval = True

    def __init__(self, levels: int | None):
        super().__init__()
        self.levels = levels or 1  # continuous data (levels: null), which a Flow does not dequantize
        # K itself, and what carries the module's device and dtype
        self.register_buffer("bins", torch.tensor(float(self.levels)), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = torch.rand(x.shape, dtype=self.bins.dtype, device=x.device)
        return (x + u) / self.bins, u.new_full((x.shape[0],), -x[0].numel() * log(self.levels))

    def midpoint(self, x: Tensor) -> Tensor:
        """The point farthest from what would be another integer: (x + 1/2) / K."""
        return (x.to(self.bins.dtype) + 0.5) / self.bins

    def on_data(self, z: Tensor) -> Tensor:
        return ((z >= 0) & (z <= 1)).flatten(1).all(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.floor(z * self.bins).clamp(0, self.levels - 1).to(torch.uint8)
