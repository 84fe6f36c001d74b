"""Densities in the plane, drawn on the fly: continuous data, nats only."""

from __future__ import annotations

from math import pi, sqrt

import numpy
import torch
from numpy import ndarray
from numpy.random import RandomState

from datamodules.base import DataModule, Split, frozen
from models.contracts import DataSpec


class Density:
    """A distribution over points of the plane."""

    def sample(self, n: int, random: RandomState) -> ndarray:
        """``n`` independent points [n, 2]."""
        raise NotImplementedError


def _signs(n: int, random: RandomState) -> ndarray:
    return 2.0 * random.randint(0, 2, (n, 2)) - 1


class Checkerboard(Density):
    """Uniform on 8 of the 16 squares of side 2 in [-4, 4]^2 (Nielsen et al. 2020, arXiv:2007.02731). Entropy ln 32."""

    def sample(self, n: int, random: RandomState) -> ndarray:
        column, row = random.randint(-2, 2, n), random.randint(-1, 1, n)
        corner = numpy.stack([column, 2 * row + column % 2], 1)
        return 2 * (corner + random.random_sample((n, 2)))


class Corners(Density):
    """Four L shapes, each two uniform bars of 1 x 3 that overlap in a square (Nielsen et al. 2020). Entropy 2.947."""

    def sample(self, n: int, random: RandomState) -> ndarray:
        upright = random.randint(0, 2, n)
        lengths = numpy.stack([3 - 2 * upright, 1 + 2 * upright], 1)
        return _signs(n, random) * (1 + lengths * random.random_sample((n, 2)))


class EightGaussians(Density):
    """Eight Gaussians of deviation 0.5 / sqrt 2 on a circle of radius 4 / sqrt 2, none on an axis (Nielsen et al. 2020).

    Grathwohl et al. 2019 (arXiv:1810.01367) have the same turned by pi / 8. Entropy 2.831.
    """

    def sample(self, n: int, random: RandomState) -> ndarray:
        angle = pi / 8 + pi / 4 * random.randint(0, 8, n)
        return (4 * numpy.stack([numpy.cos(angle), numpy.sin(angle)], 1) + 0.5 * random.standard_normal((n, 2))) / sqrt(2)


class FourCircles(Density):
    """Four overlapping circles of radius 2 about (+-1, +-1), blurred by 0.1 (Nielsen et al. 2020). Entropy 2.868."""

    def sample(self, n: int, random: RandomState) -> ndarray:
        angle = 2 * pi * random.random_sample(n)
        circle = 2 * numpy.stack([numpy.cos(angle), numpy.sin(angle)], 1)
        return _signs(n, random) + circle + 0.1 * random.standard_normal((n, 2))


class TwoMoons(Density):
    """Two half circles, blurred, in the scale of Grathwohl et al. 2019 (arXiv:1810.01367); angles are uniform, not a grid."""

    def sample(self, n: int, random: RandomState) -> ndarray:
        angle, lower = pi * random.random_sample(n), random.randint(0, 2, n)
        sign = 1 - 2 * lower
        arc = numpy.stack([sign * numpy.cos(angle) + lower, sign * numpy.sin(angle) + 0.5 * lower], 1)
        return 2 * (arc + 0.1 * random.standard_normal((n, 2))) + [-1, -0.2]


class Pinwheel(Density):
    """Five bent Gaussian blades (Johnson et al. 2016, arXiv:1603.06277), in the scale of Grathwohl et al. 2019."""

    def sample(self, n: int, random: RandomState) -> ndarray:
        along, across = (random.standard_normal((n, 2)) * [0.3, 0.1] + [1, 0]).T
        angle = 2 * pi / 5 * random.randint(0, 5, n) + 0.25 * numpy.exp(along)
        cos, sin = numpy.cos(angle), numpy.sin(angle)
        return 2 * numpy.stack([along * cos + across * sin, across * cos - along * sin], 1)


class TwoSpirals(Density):
    """Two arms of one and a half turns, blurred (Grathwohl et al. 2019, arXiv:1810.01367)."""

    def sample(self, n: int, random: RandomState) -> ndarray:
        angle = 3 * pi * numpy.sqrt(random.random_sample(n))
        arm = angle[:, None] * numpy.stack([-numpy.cos(angle), numpy.sin(angle)], 1) + 0.5 * random.random_sample((n, 2))
        return (2 * random.randint(0, 2, (n, 1)) - 1) * arm / 3 + 0.1 * random.standard_normal((n, 2))


class SwissRoll(Density):
    """One arm (t cos t, t sin t), t uniform on 1.5 pi to 4.5 pi, blurred by 1, all over 5 (Grathwohl et al. 2019)."""

    def sample(self, n: int, random: RandomState) -> ndarray:
        t = 1.5 * pi * (1 + 2 * random.random_sample(n))
        return (t[:, None] * numpy.stack([numpy.cos(t), numpy.sin(t)], 1) + random.standard_normal((n, 2))) / 5


class Toy2D(DataModule):
    """``num_train`` / ``num_val`` / ``num_test`` points [2, 1, 1], float32, a function of density and ``split_seed`` alone."""

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        density: Density, num_train: int, num_val: int, num_test: int, split_seed: int,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit)
        self.density, self.split_seed = density, split_seed
        self.sizes = {"train": num_train, "val": num_val, "test": num_test}

    def load(self, split: str) -> Split:
        random = frozen("toy2d", type(self.density).__name__, self.split_seed, split)
        points = self.density.sample(self.sizes[split], random).astype(numpy.float32)
        return Split(torch.from_numpy(points.reshape(-1, 2, 1, 1)))
