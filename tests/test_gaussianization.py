"""Gaussianization flows: quantiles against scipy, rotations against products of reflections, what the first batch does."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from models.contracts import DataSpec
from models.nn.data_init import initialize
from models.transforms.gaussianize import MarginalGaussianization, normal_quantile
from models.transforms.householder import Householder
from models.transforms.sequence import Sequential
from tests.checks_bijection import check_bijection, randomize


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Vectors(torch.nn.Module):
    """A bijection with the scoring pass that initialisation asks for."""

    spec = DataSpec((2, 1, 1), None)

    def __init__(self, bijection):
        super().__init__()
        self.bijection = bijection

    def score(self, x, y=None):
        return self.bijection(x)


def fitted(bijection, x):
    bijection = bijection.to(x.dtype)
    initialize(Vectors(bijection), x)
    return bijection


def skewed(n=2000, dim=3, dtype=torch.float64):
    return torch.rand(n, dim, dtype=dtype).square() * torch.tensor([1.0, 5.0, 0.1], dtype=dtype)[:dim] - 2


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_normal_quantile_in_both_regimes(dtype, tolerance):
    log_p = torch.tensor([log(0.5), -1.0, -5.0, -19.9, -20.1, -50.0, -300.0, -4000.0], dtype=dtype)
    z = normal_quantile(log_p)
    np.testing.assert_allclose(norm.logcdf(z.double().numpy()), log_p.double().numpy(), rtol=10 * tolerance, atol=tolerance)
    assert z[0].abs() < tolerance


def test_normal_quantile_gradient():
    log_p = torch.tensor([-0.8, -3.0, -25.0, -400.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(normal_quantile(log_p).sum(), log_p)
    difference = (normal_quantile(log_p + 1e-5) - normal_quantile(log_p - 1e-5)) / 2e-5
    torch.testing.assert_close(slope, difference.detach(), rtol=1e-7, atol=1e-9)


def test_first_batch_makes_every_number_normal():
    x = skewed()
    marginal = fitted(MarginalGaussianization(3, 16), x)
    z = marginal(x)[0].detach()
    assert all(kstest(x[:, d].numpy(), norm(x[:, d].mean(), x[:, d].std()).cdf).statistic > 0.09 for d in range(3))
    assert max(kstest(z[:, d].numpy(), norm.cdf).statistic for d in range(3)) < 0.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_tails_stay_finite_and_come_back(dtype):
    marginal = fitted(MarginalGaussianization(1, 4), skewed(dim=1, dtype=dtype))
    x = torch.tensor([[-60.0], [-5.0], [-1.5], [3.0], [60.0]], dtype=dtype)
    z, log_det = marginal(x)
    assert z.isfinite().all() and log_det.isfinite().all() and (z[1:] > z[:-1]).all()
    torch.testing.assert_close(marginal.inverse(z), x, rtol=1e-4 if dtype == torch.float32 else 1e-11, atol=1e-5)


def test_marginal_gaussianization_is_a_bijection():
    marginal = fitted(MarginalGaussianization(3, 4), skewed())
    randomize(marginal, 0.3)
    check_bijection(marginal, skewed(2))


def test_density_integrates_to_one():
    marginal = fitted(MarginalGaussianization(1, 3), skewed(dim=1))
    randomize(marginal, 0.3)
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        z, log_det = marginal(x)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0]) + log_det
    torch.testing.assert_close(torch.trapezoid(log_p.exp(), x[:, 0]), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("reflections", [1, 3, 7])
def test_householder_is_the_product_of_its_reflections(reflections):
    rotation = Householder(5, reflections).double()
    product = torch.eye(5, dtype=torch.float64)
    for v in rotation.vectors.detach().T:
        product = product @ (torch.eye(5, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v))
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(rotation(x)[0].detach(), x @ product.T, rtol=0, atol=1e-12)
    check_bijection(rotation, x[:2])


def test_first_batch_of_a_stack_is_iterative_gaussianization():
    """Each step brings the data nearer to a normal: negative log-likelihood falls with depth before any training."""
    x = torch.randn(3000, 2, dtype=torch.float64)
    x[:, 1] = 0.3 * x[:, 1] + x[:, 0].square()
    nll = []
    for steps in (0, 2, 6):
        torch.manual_seed(1)
        parts = [p for _ in range(steps) for p in (MarginalGaussianization(2, 8), Householder(2, 2))]
        z, log_det = fitted(Sequential([*parts, MarginalGaussianization(2, 8)]), x)(x)
        nll.append(-float((torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det).mean().detach()))
    assert nll[0] - 0.1 > nll[1] and nll[1] - 0.02 > nll[2], nll


def test_mistakes():
    with pytest.raises(ValueError, match="num_components"):
        MarginalGaussianization(3, 0)
    with pytest.raises(ValueError, match="num_reflections"):
        Householder(3, 0)
    with pytest.raises(RuntimeError, match="has not seen its initialising batch"):
        MarginalGaussianization(3, 2)(torch.zeros(1, 3))
