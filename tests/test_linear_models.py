"""Probabilistic PCA against its closed forms and scikit-learn's, ICA against FastICA and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FastICA

from models.contracts import DataSpec, Kind
from models.flow.ppca import PPCA
from models.nn.data_init import initialize
from models.transforms.dequantize import UniformDequantization
from models.transforms.ppca import ProbabilisticPCA
from models.transforms.rescale import Rescale
from tests.checks_bijection import check_bijection, log_abs_det_jacobian, randomize
from tests.conftest import build_model, compose


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def columns(x) -> torch.Tensor:
    """Rows [N, D] as continuous images [N, D, 1, 1]."""
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)[:, :, None, None]


def ppca(dim, rank):
    return PPCA(DataSpec((dim, 1, 1), None), None, None, rank).double().eval()


def correlated(n=400, dim=6):
    return torch.randn(n, dim, dtype=torch.float64) @ torch.randn(dim, dim, dtype=torch.float64) + torch.randn(dim, dtype=torch.float64)


def test_log_density_is_that_of_the_gaussian():
    model, x = ppca(6, 2), correlated()
    initialize(model, columns(x))
    randomize(model, 0.3)
    pca = model.transforms[-1].parts[1]
    sigma = pca.log_sigma.detach().exp()
    covariance = pca.weight.detach() @ pca.weight.detach().T + sigma.square() * torch.eye(6, dtype=torch.float64)
    score = model.score(columns(x))
    assert score.kind == Kind.EXACT
    wanted = multivariate_normal(pca.mean.detach().numpy(), covariance.numpy()).logpdf(x.numpy())
    np.testing.assert_allclose(score.nats.detach().numpy(), wanted, rtol=0, atol=1e-9)
    check_bijection(pca, x[:2])
    samples = model.sample(200_000).flatten(1)
    np.testing.assert_allclose(torch.cov(samples.T).numpy(), covariance.numpy(), rtol=0, atol=0.02 * float(covariance.max()))


@pytest.mark.parametrize("data", [correlated(), torch.tensor(load_digits().data)], ids=["gaussian", "digits"])
def test_closed_form_fit_is_scikit_learns(data):
    """Mean log-likelihood to 1e-8, and the reconstructions; scikit-learn divides its covariance by N - 1, maximum likelihood by N."""
    rank, n = 3, len(data)
    model = ppca(data.shape[1], rank)
    initialize(model, columns(data))
    pca = PCA(rank, svd_solver="full").fit(data.numpy())
    pca.explained_variance_ *= (n - 1) / n
    pca.noise_variance_ *= (n - 1) / n
    assert float(model.score(columns(data)).nats.mean().detach()) == pytest.approx(pca.score(data.numpy()), abs=1e-8)
    covariance = pca.get_covariance()
    centred = data.numpy() - pca.mean_
    shrunk = pca.mean_ + centred @ np.linalg.solve(covariance, covariance - pca.noise_variance_ * np.eye(data.shape[1]))
    np.testing.assert_allclose(model.reconstruct(columns(data)).flatten(1).numpy(), shrunk, rtol=0, atol=1e-8)


def test_the_closed_form_is_a_maximum():
    model, x = ppca(6, 2), columns(correlated())
    initialize(model, x)
    model.score(x).nats.mean().backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-8
    best = model.score(x).nats.mean()
    randomize(model, 0.01)
    assert model.score(x).nats.mean() < best


def test_fewer_examples_than_rank():
    model = ppca(6, 5)
    initialize(model, columns(correlated(3)))
    assert model.score(columns(correlated(3))).nats.isfinite().all()
    assert model.transforms[-1].parts[1].log_sigma.item() == pytest.approx(np.log(1e-6) / 2)


def test_reconstructions_of_integers():
    """With all directions but one the posterior mean is near the image; with one it is far."""
    x = torch.tensor(load_digits().images[:300]).to(torch.uint8)[:, None]
    errors = []
    for rank in (1, 63):
        model = PPCA(DataSpec((1, 8, 8), 17), UniformDequantization(17), Rescale(1.0, -0.5), rank).eval()
        initialize(model, x)
        back = model.reconstruct(x)
        assert back.min() >= 0 and back.max() <= 16
        errors.append(float((back - x).abs().mean()))
    assert errors[1] < 0.3 < 1 < errors[0]


@pytest.mark.parametrize("rank", [0, 6])
def test_ranks_that_are_none(rank):
    with pytest.raises(ValueError, match="rank must be at least 1 and less than the 6"):
        ProbabilisticPCA(6, rank)


def amari(unmixing: np.ndarray, mixing: np.ndarray) -> float:
    """Amari et al. 1996: 0 when the product is a scaled permutation, of order 1 when it is arbitrary."""
    p = np.abs(unmixing @ mixing)
    rows, cols = p / p.max(1, keepdims=True), p / p.max(0, keepdims=True)
    n = len(p)
    return float((rows.sum() + cols.sum() - 2 * n) / (2 * n * (n - 1)))


def unmixing(model) -> torch.Tensor:
    """The matrix [D, D] of a linear flow of vectors, at one point, and its log |det|."""
    return log_abs_det_jacobian(lambda v: model.transforms[0](v[:, :, None, None])[0], torch.zeros(1, model.spec.dims).double())


@pytest.mark.parametrize("draw", ["laplace", "logistic"])
def test_ica_finds_the_mixing(draw):
    random = np.random.default_rng(0)
    sources, mixing = getattr(random, draw)(size=(3000, 3)), random.normal(size=(3, 3))
    x = columns(sources @ mixing.T + random.normal(size=3))
    config = compose("model=ica", "data=toy2d", "data.spec.shape=[3,1,1]")
    model = build_model(config, torch.float64)
    initialize(model, x)
    start = amari(unmixing(model)[0].numpy(), mixing)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(500):
        optimizer.zero_grad()
        (-model.score(x).nats.mean()).backward()
        optimizer.step()
    matrix, log_det = unmixing(model)
    found = amari(matrix.numpy(), mixing)
    fast = amari(FastICA(3, fun="logcosh", random_state=0, max_iter=500).fit(x.flatten(1).numpy()).components_, mixing)
    assert start > 0.2 and found < 0.06 and found < fast + 0.02, (start, found, fast)
    score = model.score(x)
    assert score.kind == Kind.EXACT
    z = model.transforms[0](x)[0].detach()
    logistic = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.zeros_like(z), torch.ones_like(z)), torch.distributions.SigmoidTransform().inv
    )
    torch.testing.assert_close(score.nats.detach(), log_det + logistic.log_prob(z).sum(1), rtol=0, atol=1e-7)
