"""The multi-scale architecture of convolutional flows."""

from __future__ import annotations

from collections.abc import Callable

from models.contracts import Bijection, Transform
from models.transforms.sequence import Sequential
from models.transforms.split import Split
from models.transforms.squeeze import Squeeze


class MultiScale:
    """``num_levels`` times a squeeze and ``num_steps`` steps, with a split between levels (``split`` None: without).

    A step is the named parts of ``step`` in their order, each made by ``factory(channels)``. RealNVP, Dinh et al. 2016
    (arXiv:1605.08803), sec. 3.6; Glow, Kingma & Dhariwal 2018 (arXiv:1807.03039), fig. 2b. ``recompute``: in training, the
    memory of a level does not grow with its steps, for about half more time (see Sequential).
    """

    def __init__(
        self,
        num_levels: int,
        num_steps: int,
        step: dict[str, Callable[[int], Bijection]],
        split: Callable[[int], Split] | None,
        recompute: bool = False,
    ):
        self.num_levels, self.num_steps, self.step, self.split, self.recompute = num_levels, num_steps, step, split, recompute

    def __call__(self, shape: tuple[int, int, int]) -> tuple[list[Transform], tuple[int, int, int]]:
        """(transforms, shape of what is left) for images of ``shape``; ValueError if they cannot be halved so often."""
        channels, height, width = shape
        transforms: list[Transform] = []
        for level in range(self.num_levels):
            if height % 2 or width % 2:
                raise ValueError(
                    f"num_levels={self.num_levels} halves the sides {self.num_levels} times, which {tuple(shape)} images allow "
                    f"{level} times: set num_levels to at most {level}, or choose data whose sides have more factors of 2"
                )
            if level > 0 and self.split is not None:
                transforms.append(self.split(channels))
                channels = transforms[-1].kept
            channels, height, width = 4 * channels, height // 2, width // 2
            steps = [make(channels) for _ in range(self.num_steps) for make in self.step.values()]
            transforms.append(Sequential([Squeeze(), *steps], self.recompute))
        return transforms, (channels, height, width)
