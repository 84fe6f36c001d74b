"""Scales that work before and after a squeeze."""

from __future__ import annotations

from collections.abc import Callable

from models.contracts import Bijection, Transform
from models.transforms.sequence import Sequential
from models.transforms.split import Split
from models.transforms.squeeze import Squeeze

Shape = tuple[int, int, int]


def two_sided_scales(
    shape: Shape,
    num_scales: int,
    before: Callable[[int, Shape], list[Bijection]],
    after: Callable[[int, Shape], list[Bijection]],
    split: Callable[[int], Split],
) -> tuple[list[Transform], Shape]:
    """(transforms, shape of what is left): ``before``, a squeeze, ``after`` and a split, for all scales but the last.

    Both are called as ``make(scale, shape)``. Raises ValueError for images that cannot be halved so often.
    """
    channels, height, width = shape
    transforms: list[Transform] = []
    for scale in range(num_scales - 1):
        if height % 2 or width % 2:
            raise ValueError(
                f"num_scales={num_scales} halves the sides {num_scales - 1} times, which {tuple(shape)} images "
                f"allow {scale} times: set num_scales to at most {scale + 1}, or choose data whose sides halve more often"
            )
        first = before(scale, (channels, height, width))
        channels, height, width = 4 * channels, height // 2, width // 2
        second = after(scale, (channels, height, width))
        transforms += [Sequential([*first, Squeeze(), *second]), split(channels)]
        channels = transforms[-1].kept
    return transforms, (channels, height, width)
