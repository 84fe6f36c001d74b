"""The multi-scale architecture of convolutional flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from models.contracts import Bijection, Transform
from models.transforms.sequence import Sequential
from models.transforms.split import Split
from models.transforms.squeeze import Squeeze


def multi_scale(
    shape: Sequence[int],
    num_levels: int,
    num_steps: int,
    step: Mapping[str, Callable[[int], Bijection]],
    split: Callable[[int], Split],
) -> tuple[list[Transform], tuple[int, int, int]]:
    """(transforms, shape of what is left): ``num_levels`` times squeeze and ``num_steps`` steps, with a split between levels.

    A step is the named parts of ``step`` in their order, each made by ``factory(channels)``. RealNVP, Dinh et al. 2016
    (arXiv:1605.08803), sec. 3.6; Glow, Kingma & Dhariwal 2018 (arXiv:1807.03039), fig. 2b. Raises ValueError for an image that
    cannot be halved so often.
    """
    channels, height, width = shape
    transforms: list[Transform] = []
    for level in range(num_levels):
        if height % 2 or width % 2:
            raise ValueError(
                f"{num_levels} levels halve height and width {num_levels} times, but {tuple(shape)} images allow {level}: "
                f"set num_levels to at most {level}, or choose data whose sides have more factors of 2"
            )
        channels, height, width = 4 * channels, height // 2, width // 2
        steps = [make(channels) for _ in range(num_steps) for make in step.values()]
        transforms.append(Sequential([Squeeze(), *steps]))
        if level < num_levels - 1:
            transforms.append(split(channels))
            channels = transforms[-1].kept
    return transforms, (channels, height, width)
