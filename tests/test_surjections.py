"""Surjections against closed forms, enumeration and integration; what they lose comes back."""

from functools import partial
from itertools import permutations
from math import log

import numpy
import pytest
import torch
from scipy import stats
from torch import nn

from models.contracts import Kind
from models.distributions.normal import DiagonalNormal
from models.distributions.positive import Exponential, HalfNormal, ScaledBy
from models.transforms.absolute import Absolute
from models.transforms.affine_maps import Affine
from models.transforms.conditioners import MLP
from models.transforms.funnel import ConvFunnel, Funnel, NetNormal
from models.transforms.maxpool import MaxPool
from models.transforms.sort import Sort
from models.transforms.splines import RationalQuadratic
from models.transforms.split import ConvNormal, Split
from models.transforms.surjection import Generative
from tests.checks_bijection import log_abs_det_jacobian, randomize

NET = partial(MLP, hidden=[8])
SPLINE = partial(RationalQuadratic, num_bins=3, bound=3.0, min_width=1e-3, min_height=1e-3, min_derivative=1e-3)
UNIT = partial(ScaledBy, distribution=HalfNormal, conditioner=None)


class Conv(nn.Conv2d):
    """A convolution called as conditioners are."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x, context=None):
        return super().forward(x)


LEARNED = partial(ScaledBy, distribution=Exponential, conditioner=Conv)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def scattered(module: nn.Module, scale: float = 0.3) -> nn.Module:
    module = module.double()
    randomize(module, scale)
    return module


def funnel(channels, dropped):
    return Funnel(channels, dropped, NET, SPLINE, partial(NetNormal, conditioner=NET, bound=2.0))


SURJECTIONS = {
    "abs": (lambda: Absolute(4, None, None), (4,)),
    "abs of images": (lambda: Absolute(4, 2, partial(Conv)), (4, 2, 2)),
    "abs with learned signs": (lambda: Absolute(4, 1, NET), (4,)),
    "sort": (lambda: Sort(4, 4, None), (4,)),
    "sort with a learned order": (lambda: Sort(6, 3, NET), (6,)),
    "max-pool": (lambda: MaxPool(2, UNIT), (2, 4, 4)),
    "max-pool with learned offsets": (lambda: MaxPool(2, LEARNED), (2, 4, 2)),
    "split": (lambda: Split(4, ConvNormal, dropped=3), (4, 2, 2)),
    "funnel": (lambda: funnel(5, 2), (5,)),
    "funnel of images": (lambda: ConvFunnel(2, Conv, SPLINE, ConvNormal), (2, 4, 2)),
}


@pytest.mark.parametrize("name", SURJECTIONS)
def test_what_is_lost_comes_back(name):
    make, shape = SURJECTIONS[name]
    transform = scattered(make())
    x = torch.randn(6, *shape, dtype=torch.float64)
    z, contribution = transform(x)
    kept, residual = transform.encode(x)
    assert kept.equal(z) and contribution.shape == (6,) and z.shape[1] == transform.kept and transform.kind is Kind.EXACT
    torch.testing.assert_close(transform.decode(z, residual), x, rtol=0, atol=1e-10)
    for again in (transform.inverse(z), transform.decode(z, torch.randn_like(residual))):
        torch.testing.assert_close(transform.encode(again)[0], z, rtol=0, atol=1e-10)
    assert not torch.allclose(transform.inverse(z), x), "a residual that is never redrawn"


@pytest.mark.parametrize("name", SURJECTIONS)
def test_what_is_redrawn_has_the_stated_likelihood(name):
    """Over draws of p(x | z), the mean of q(x | z) / p(x | z) is 1 for any other q(x | z): here, that of a twin."""
    make, shape = SURJECTIONS[name]
    p, q = scattered(make(), 0.05), scattered(make(), 0.05)
    z = p(torch.randn(1, *shape, dtype=torch.float64))[0]
    x = p.decode(z.expand(40_000, *z.shape[1:]))
    if "funnel" in name:
        q.coupling.load_state_dict(p.coupling.state_dict())  # the same fibre
    ratio = (q(x)[1] - p(x)[1]).exp().detach()
    error = float(ratio.std()) / len(x) ** 0.5
    assert abs(float(ratio.mean()) - 1) < 5 * error + 1e-9 and error < 0.02


# --- closed forms --------------------------------------------------------------------------------------------------------


def test_the_absolute_value_of_a_normal_is_half_normal():
    """p(|x|) = p(x) / p(sign): the contribution turns the normal's density into the half-normal's."""
    x = torch.randn(50, 3, dtype=torch.float64)
    z, contribution = Absolute(3, None, None)(x)
    wanted = stats.halfnorm.logpdf(z).sum(1)
    numpy.testing.assert_allclose(stats.norm.logpdf(x).sum(1) - contribution.numpy(), wanted, atol=1e-12)


def test_sorted_normals_have_the_density_of_order_statistics():
    """n! times the product on sorted values; for the largest of them that is n f F^(n-1), here by integration."""
    sort = Sort(3, 3, None)
    step, top = 0.01, 0.7
    grid = torch.arange(-6, top, step, dtype=torch.float64)
    pairs = torch.cartesian_prod(grid, grid)
    x = torch.cat([pairs, torch.full_like(pairs[:, :1], top)], 1)[(pairs[:, 0] < pairs[:, 1]) & (pairs[:, 1] < top)]
    _, contribution = sort(x)
    numpy.testing.assert_allclose(contribution, -log(6))
    density = (torch.distributions.Normal(0, 1).log_prob(x).sum(1) - contribution).exp()
    wanted = 3 * stats.norm.pdf(top) * stats.norm.cdf(top) ** 2
    assert float(density.sum()) * step**2 == pytest.approx(wanted, rel=0.02)


def test_the_largest_of_four_exponentials():
    """Of four exponentials, given the largest, the others are truncated exponentials: with such offsets p(z) is 4 f F^3."""

    class Truncated(nn.Module):
        """Offsets z - d, d exponential below z."""

        def __init__(self, in_channels, out_channels):
            super().__init__()

        def forward(self, z):
            truncated = lambda d: (-(z - d) - torch.log1p(-(-z).exp())).flatten(1).sum(1)  # noqa: E731
            return type("Offsets", (), {"log_prob": staticmethod(truncated)})

    x = torch.empty(200, 1, 2, 2, dtype=torch.float64).exponential_()
    z, contribution = MaxPool(1, Truncated)(x)
    wanted = log(4) + stats.expon.logpdf(z) + 3 * stats.expon.logcdf(z)
    numpy.testing.assert_allclose(-x.sum((1, 2, 3)) - contribution, wanted.reshape(-1), atol=1e-9)


@pytest.mark.parametrize("distribution, reference", [(HalfNormal, stats.halfnorm), (Exponential, stats.expon)])
def test_positive_distributions_against_scipy(distribution, reference):
    log_scale = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    p, z = distribution(log_scale), torch.rand(20, 2, dtype=torch.float64)
    wanted = reference.logpdf(z, scale=log_scale.exp()).sum(1)
    numpy.testing.assert_allclose(p.log_prob(z), wanted, atol=1e-10)
    draws = p.rsample(4000)
    for column, scale in zip(draws.T, log_scale[0].exp()):
        assert stats.kstest(column, reference(scale=float(scale)).cdf).pvalue > 1e-3
    torch.testing.assert_close(p.rsample(1, 0.0), torch.zeros(1, 2, dtype=torch.float64))


def test_the_order_of_places_sums_to_one():
    """Plackett-Luce over all 4! orders of the same sorted values, and draws as often as it says."""
    sort = scattered(Sort(4, 4, NET), 0.5)
    z = torch.randn(1, 4, dtype=torch.float64).sort(1).values
    orders = torch.tensor(list(permutations(range(4))))
    p = sort(z[0][orders])[1].exp().detach()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12) and float(p.max() / p.min()) > 3
    draws = sort.decode(z.expand(20_000, 4))
    counts = (draws[:, None] == z[0][orders][None]).all(2).double().sum(0)
    assert stats.chisquare(counts.numpy(), 20_000 * p.numpy()).pvalue > 1e-3


def test_signs_are_drawn_as_often_as_they_are_likely():
    absolute = scattered(Absolute(2, None, NET), 0.8)
    z = torch.rand(1, 2, dtype=torch.float64)
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    p = absolute(signs * z)[1].exp().detach()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    draws = absolute.decode(z.expand(20_000, 2))
    counts = (draws[:, None].sign() == signs[None]).all(2).double().sum(0)
    assert stats.chisquare(counts.numpy(), 20_000 * p.numpy()).pvalue > 1e-3


def test_the_funnel_of_a_gaussian():
    """A linear-Gaussian funnel whose parts are the exact conditionals gives the exact joint density."""
    x = torch.randn(30, 2, dtype=torch.float64)
    rho = 0.6  # (a, b) of correlation rho; z = a - rho b is N(0, 1 - rho^2) and independent of b

    class Net(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()

        def forward(self, b, context=None):
            return torch.cat([rho * b, torch.zeros_like(b)], 1)

    class Prior(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()

        def forward(self, z):
            return DiagonalNormal(torch.zeros_like(z), torch.zeros_like(z))

    z, contribution = Funnel(2, 1, Net, partial(Affine, bound=2.0), Prior)(x)
    nats = contribution + torch.distributions.Normal(0, (1 - rho**2) ** 0.5).log_prob(z)[:, 0]
    wanted = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).logpdf(x)
    numpy.testing.assert_allclose(nats, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["funnel", "funnel of images"])
def test_a_funnel_counts_the_volume_of_what_it_keeps(name):
    make, shape = SURJECTIONS[name]
    transform = scattered(make())
    for x in torch.randn(3, 1, *shape, dtype=torch.float64):
        _, residual = transform.encode(x)
        both = lambda v: torch.cat([part.flatten(1) for part in transform.encode(v)], 1)  # noqa: E731
        wanted = log_abs_det_jacobian(both, x)[1] + torch.distributions.Normal(0, 1).log_prob(residual).sum()
        torch.testing.assert_close(transform(x)[1][0], wanted, rtol=0, atol=1e-8)


# --- generative surjections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: Absolute(2, None, None), (2,)),
        (lambda: Sort(3, 3, None), (3,)),
        (lambda: MaxPool(1, partial(ScaledBy, distribution=Exponential, conditioner=None)), (1, 2, 2)),
        (lambda: Split(3, ConvNormal, dropped=1), (3, 1, 1)),
        (lambda: funnel(3, 1), (3,)),
    ],
)
def test_the_weights_of_a_generative_surjection_average_to_the_density(make, shape):
    """x = S(v) of normal v: the mean weight is the density of x, in closed form but for funnels, and the same for another q."""
    surjection, other = scattered(make(), 0.1), scattered(make(), 0.1)
    if hasattr(surjection, "coupling"):
        other.coupling.load_state_dict(surjection.coupling.state_dict())
    x = surjection.encode(torch.randn(1, *shape, dtype=torch.float64))[0]
    many = x.expand(60_000, *x.shape[1:])

    def weights(s):
        z, contribution = Generative(s)(many)
        return (contribution + torch.distributions.Normal(0, 1.1).log_prob(z).flatten(1).sum(1)).exp().detach()

    first, second = weights(surjection), weights(other)
    errors = [float(w.std()) / len(w) ** 0.5 for w in (first, second)]
    assert abs(float(first.mean() - second.mean())) < 5 * sum(errors) + 1e-9 and max(errors) < 0.05 * float(first.mean())
    normal = stats.norm(scale=1.1)
    if isinstance(surjection, Absolute):
        wanted = stats.halfnorm.pdf(x, scale=1.1).prod()
    elif isinstance(surjection, Sort):
        wanted = 6 * normal.pdf(x).prod()
    elif isinstance(surjection, MaxPool):
        wanted = (4 * normal.pdf(x) * normal.cdf(x) ** 3).item()
    elif isinstance(surjection, Funnel):
        return
    else:
        wanted = normal.pdf(x).prod()
    assert float(first.mean()) == pytest.approx(wanted, abs=5 * errors[0] + 1e-7)


def test_a_generative_surjection_is_a_weight_and_refuses_learned_choices():
    backwards = Generative(Split(4, ConvNormal, dropped=2))
    x = torch.randn(5, 2, 1, 1)
    z, _ = backwards(x)
    assert z.shape == (5, 4, 1, 1) and backwards.inverse(z).equal(x) and backwards.kind is Kind.WEIGHT
    assert not backwards(x)[0].equal(z)
    for learned in (Absolute(2, None, NET), Sort(2, 2, NET)):
        with pytest.raises(ValueError, match="fixed to read it backwards"):
            Generative(learned)
