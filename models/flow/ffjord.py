"""The multi-scale architecture of FFJORD."""

from __future__ import annotations

from collections.abc import Callable

from models.contracts import Bijection, Transform
from models.flow.scales import two_sided_scales
from models.transforms.sequence import Sequential
from models.transforms.split import Split


class ContinuousScales:
    """Each scale: ``num_flows`` continuous flows, a squeeze, as many flows, a split. The last scale: ``num_flows``.

    Grathwohl et al. 2019 (arXiv:1810.01367), appendix B.1 and the released code (odenvp.py), which uses as many scales as sides
    of at least 4 allow: 3 for 28x28 images, 4 for 32x32. ``flow(shape)`` makes a flow over [B, *shape].
    """

    def __init__(
        self,
        num_scales: int,
        num_flows: int,
        flow: Callable[[tuple[int, int, int]], Bijection],
        split: Callable[[int], Split],
    ):
        self.num_scales, self.num_flows, self.flow, self.split = num_scales, num_flows, flow, split

    def __call__(self, shape: tuple[int, int, int]) -> tuple[list[Transform], tuple[int, int, int]]:
        """(transforms, shape of what is left) for images of ``shape``; ValueError if they cannot be halved so often."""
        make = lambda scale, shape: self._flows(shape)  # noqa: E731
        transforms, left = two_sided_scales(shape, self.num_scales, make, make, self.split)
        return [*transforms, Sequential(self._flows(left))], left

    def _flows(self, shape: tuple[int, int, int]) -> list[Bijection]:
        return [self.flow(shape) for _ in range(self.num_flows)]
