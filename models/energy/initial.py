"""Where chains begin: normalised distributions that need no parameters."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from models.contracts import sum_event


class Initial:
    """A fixed distribution over states; ``box`` is the cube it lives on, None for all of R^D."""

    box: tuple[float, float] | None

    def draw(self, like: Tensor) -> Tensor:
        """Independent draws in the shape, dtype and device of ``like`` [n, *event]."""
        raise NotImplementedError

    def log_prob(self, u: Tensor) -> Tensor:
        """Nats [n], for states inside the box."""
        raise NotImplementedError


class UniformNoise(Initial):
    """Uniform on the cube [low, high]^D."""

    def __init__(self, low: float, high: float):
        if not low < high:
            raise ValueError(f"uniform noise needs low < high; got {low} and {high}")
        self.box = (low, high)

    def draw(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).uniform_(*self.box)

    def log_prob(self, u: Tensor) -> Tensor:
        return u.new_full((len(u),), -log(self.box[1] - self.box[0]) * u[0].numel())


class GaussianNoise(Initial):
    """N(0, scale^2 I) on R^D."""

    box = None

    def __init__(self, scale: float):
        self.scale = scale

    def draw(self, like: Tensor) -> Tensor:
        return self.scale * torch.randn_like(like)

    def log_prob(self, u: Tensor) -> Tensor:
        return sum_event(-0.5 * (u / self.scale).square() - log(self.scale) - 0.5 * log(2 * pi))
