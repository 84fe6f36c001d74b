"""Flows over an image's numbers as one vector, of parts that may change its length."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from models.contracts import Bijection, Transform
from models.transforms.flatten import Flatten
from models.transforms.sequence import Sequential
from models.transforms.surjection import Surjection


class Stages:
    """The image as a vector [B, D], then each stage in its order: ``num_steps`` times its named ``parts`` (None: left out).

    ``stages`` is {name: {num_steps, parts}}. A part is made by ``factory(D)``, D the length that the parts before have left.
    """

    def __init__(self, stages: dict[str, dict[str, Any] | None]):
        self.makers: list[Callable[[int], Transform]] = [
            make
            for stage in stages.values()
            if stage is not None
            for _ in range(stage["num_steps"])
            for make in stage["parts"].values()
        ]

    def __call__(self, shape: tuple[int, int, int]) -> tuple[list[Transform], tuple[int]]:
        """(transforms, length of what is left): surjections, with the bijections between them in sequence."""
        dim, transforms, bijections = prod(shape), [], [Flatten(shape)]
        for make in self.makers:
            part = make(dim)
            if isinstance(part, Bijection):
                bijections.append(part)
                continue
            transforms += [Sequential(bijections), part] if bijections else [part]
            bijections = []
            dim = part.kept if isinstance(part, Surjection) else dim
        return transforms + ([Sequential(bijections)] if bijections else []), (dim,)
