"""The eight densities of the plane against closed forms and quadrature."""

import numpy
import pytest
import torch
from numpy import cos, exp, log, pi, sin
from scipy.integrate import quad
from scipy.special import i0e, logsumexp

from datamodules.base import SPLITS, frozen
from datamodules.toy2d import (
    Checkerboard,
    Corners,
    EightGaussians,
    FourCircles,
    Pinwheel,
    SwissRoll,
    Toy2D,
    TwoMoons,
    TwoSpirals,
)  # fmt: skip
from models.contracts import DataSpec

N = 200_000
ALL = [Checkerboard, Corners, EightGaussians, FourCircles, Pinwheel, SwissRoll, TwoMoons, TwoSpirals]


def points(density):
    return density().sample(N, frozen("test", density.__name__))


def mean_over(function, low, high, weight=lambda t: 1.0):
    return quad(lambda t: function(t) * weight(t), low, high)[0] / quad(weight, low, high)[0]


def assert_mean(samples, expected):
    assert abs(samples.mean() - expected) < 5 * samples.std() / len(samples) ** 0.5


def log_checkerboard(x):
    inside = (numpy.abs(x) < 4).all(1) & (numpy.floor(x / 2).sum(1) % 2 == 0)
    return numpy.where(inside, -log(32), -numpy.inf)


def log_corners(x):
    a, b = numpy.abs(x).T
    bar = lambda p, q: ((1 < p) & (p < 2) & (1 < q) & (q < 4)) / 3  # noqa: E731
    return log((bar(a, b) + bar(b, a)) / 2 / 4)


def log_eight_gaussians(x):
    angles = pi / 8 + pi / 4 * numpy.arange(8)
    squares = ((x[:, None] - 2 * 2**0.5 * numpy.stack([cos(angles), sin(angles)], 1)) ** 2).sum(2)
    return logsumexp(-squares / (2 * 0.125) - log(2 * pi * 0.125) - log(8), axis=1)


def log_four_circles(x):
    # radius of a point blurred by s about a circle of radius R: I0(r R / s^2) exp(-(r^2 + R^2) / (2 s^2)) / (2 pi s^2)
    centres = numpy.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    r = numpy.linalg.norm(x[:, None] - centres, axis=2)
    with numpy.errstate(divide="ignore"):
        return logsumexp(log(i0e(200 * r)) - (r - 2) ** 2 / 0.02 - log(2 * pi * 0.01) - log(4), axis=1)


@pytest.mark.parametrize(
    "density, log_density, entropy",
    [
        (Checkerboard, log_checkerboard, log(32)),
        (Corners, log_corners, log(4) + 2 / 3 * log(6) + 1 / 3 * log(3)),
        (EightGaussians, log_eight_gaussians, 2.831),
        (FourCircles, log_four_circles, 2.868),
    ],
)
def test_closed_form(density, log_density, entropy):
    # the cross entropy of the samples is the entropy, and their histogram is the density's
    x = points(density)
    nats = -log_density(x)
    assert abs(nats.mean() - entropy) < 5 * nats.std() / N**0.5 + 1e-3
    edges = numpy.linspace(-4, 4, 17)
    counts = numpy.histogram2d(*x.T, bins=(edges, edges))[0] / N
    fine = (numpy.arange(640) + 0.5) / 80 - 4
    grid = numpy.stack(numpy.meshgrid(fine, fine, indexing="ij"), -1).reshape(-1, 2)
    with numpy.errstate(divide="ignore"):
        mass = (exp(log_density(grid)) / 80**2).reshape(16, 40, 16, 40).sum((1, 3))
    assert (numpy.abs(counts - mass) < 5 * (mass * (1 - mass) / N) ** 0.5 + 1e-4).all()


def test_two_moons_moments():
    x, y = points(TwoMoons).T
    half = 2 / pi  # mean of sin over a half circle
    assert_mean(x, 0.0)
    assert_mean(y, 2 * (half + 0.5 - half) / 2 - 0.2)
    for value, upper, lower in (
        (x, lambda t: 2 * cos(t) - 1, lambda t: 2 * (1 - cos(t)) - 1),
        (y, lambda t: 2 * sin(t) - 0.2, lambda t: 2 * (0.5 - sin(t)) - 0.2),
    ):
        second = sum(mean_over(lambda t, arc=arc: arc(t) ** 2, 0, pi) for arc in (upper, lower)) / 2
        assert_mean(value**2, second + 0.04)


def test_pinwheel_moments():
    x, y = points(Pinwheel).T
    for value, expected in ((x, 0), (y, 0), (x * y, 0), (x**2, 2.2), (y**2, 2.2)):  # five-fold symmetry: E|x|^2 / 2 each way
        assert_mean(value, expected)


def test_two_spirals_moments():
    x, y = points(TwoSpirals).T
    assert_mean(x, 0)
    assert_mean(y, 0)
    weight = lambda t: t  # angle = 3 pi sqrt(u)  # noqa: E731
    for value, arm in ((x, lambda t: -t * cos(t)), (y, lambda t: t * sin(t))):
        square = mean_over(lambda t, arm=arm: arm(t) ** 2 + 2 * 0.25 * arm(t) + 0.25 / 3, 0, 3 * pi, weight)
        assert_mean(value**2, square / 9 + 0.01)


def test_swiss_roll_moments():
    x, y = points(SwissRoll).T
    for value, arm in ((x, lambda t: t * cos(t)), (y, lambda t: t * sin(t))):
        assert_mean(value, mean_over(arm, 1.5 * pi, 4.5 * pi) / 5)
        assert_mean(value**2, (mean_over(lambda t, arm=arm: arm(t) ** 2, 1.5 * pi, 4.5 * pi) + 1) / 25)


@pytest.mark.parametrize("density", ALL)
def test_module(density):
    def make(**changes):
        arguments = {
            "spec": DataSpec((2, 1, 1), None), "name": "toy", "root": ".", "seed": 1, "batch_size": 50, "eval_batch_size": 70,
            "limit": None, "density": density(), "num_train": 300, "num_val": 20, "num_test": 100, "split_seed": 0,
        }
        return Toy2D(**(arguments | changes))

    data = make()
    assert [data.num_examples(split) for split in SPLITS] == [300, 20, 100]
    for split in SPLITS:
        x = data.split(split).x
        assert x.shape[1:] == (2, 1, 1) and x.dtype == torch.float32 and x.isfinite().all()
    assert make(seed=2).checksum("test") == data.checksum("test") != make(split_seed=1).checksum("test")
    assert not torch.equal(data.split("train").x[:100], data.split("test").x)
