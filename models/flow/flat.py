"""Flows over an image's numbers as one vector."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from models.contracts import Bijection, Transform
from models.transforms.flatten import Flatten
from models.transforms.sequence import Sequential


class Flat:
    """The image as a vector [B, D], ``num_steps`` times the named parts of ``step``, and once those of ``last``.

    Parts come in their order, each made by ``factory(D)``. NICE, Dinh et al. 2014 (arXiv:1410.8516), sec. 5.1.
    """

    def __init__(self, num_steps: int, step: dict[str, Callable[[int], Bijection]], last: dict[str, Callable[[int], Bijection]]):
        self.num_steps, self.step, self.last = num_steps, step, last

    def __call__(self, shape: tuple[int, int, int]) -> tuple[list[Transform], tuple[int]]:
        dim = prod(shape)
        makers = [*list(self.step.values()) * self.num_steps, *self.last.values()]
        return [Sequential([Flatten(shape), *(make(dim) for make in makers)])], (dim,)
