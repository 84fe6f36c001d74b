"""Convolutional flows that halve the image by a surjection."""

from __future__ import annotations

from collections.abc import Callable

from models.contracts import Bijection, Transform
from models.transforms.sequence import Sequential
from models.transforms.squeeze import Squeeze
from models.transforms.surjection import Surjection


class Pooled:
    """One squeeze, then ``num_scales`` times ``num_steps`` steps, with a ``pool`` between scales that keeps the channels.

    A step is the named parts of ``step`` in their order, each made by ``factory(channels)``, as the pools are.
    Nielsen et al. 2020, arXiv:2007.02731, sec. 4.3.
    """

    def __init__(
        self,
        num_scales: int,
        num_steps: int,
        step: dict[str, Callable[[int], Bijection]],
        pool: Callable[[int], Surjection],
    ):
        self.num_scales, self.num_steps, self.step, self.pool = num_scales, num_steps, step, pool

    def __call__(self, shape: tuple[int, int, int]) -> tuple[list[Transform], tuple[int, int, int]]:
        """(transforms, shape of what is left) for images of ``shape``; ValueError if they cannot be halved so often."""
        channels, height, width = shape
        side = 2**self.num_scales
        if height % side or width % side:
            raise ValueError(
                f"num_scales={self.num_scales} halves the sides {self.num_scales} times, which {tuple(shape)} images do not "
                f"allow: choose fewer, or data whose sides are multiples of {side}"
            )
        channels *= 4
        transforms: list[Transform] = []
        for scale in range(self.num_scales):
            if scale > 0:
                transforms.append(self.pool(channels))
            steps = [make(channels) for _ in range(self.num_steps) for make in self.step.values()]
            transforms.append(Sequential([Squeeze(), *steps] if scale == 0 else steps))
        return transforms, (channels, height // side, width // side)
